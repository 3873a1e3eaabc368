"""How many examples a plain loop's call of the model has: declared, or read off its inputs and outputs.

Nothing is guessed where inputs and outputs disagree: a step that needs the number then raises an error with
the reason and the remedy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.model.arrangement import Called

#: what a user declares: a number, or a function of the model's inputs; ``None``: it is read off
Declared = int | Callable[..., int] | None

HINT = "declare it with curvlab.optimizer(…, examples=…): a number, or a function of the model's inputs"


class Forward:
    """One call of the model: how many examples it has, or ``problem``, why that is not known.

    ``inferred``: it is the first axis of its first tensor, with which its outputs must agree, as nothing was
    declared.  ``latest`` is the shape of the last call of a layer in it, ``nearest`` that of the call that is
    nearest to the loss.  ``batch`` holds the calls that share a loss: all those that one backward pass runs
    through.  ``task`` is the graph task in which it was made, as checkpoints do.
    """

    __slots__ = (
        "batch",
        "examples",
        "inferred",
        "joined",
        "latest",
        "nearest",
        "positions",
        "problem",
        "task",
    )

    def __init__(self, examples: int | None, problem: str = "", *, inferred: bool = False) -> None:
        self.examples, self.problem, self.inferred = examples, problem, inferred
        self.latest: Called | None = None
        self.task = -1
        self.positions = examples  # entries of the first two axes
        self.joined = False
        self.nearest: Called | None = None
        self.batch: list[Forward] = [self]

    def merge(self, other: Forward) -> None:
        """Both belong to one loss."""
        if self.batch is not other.batch:
            self.batch.extend(other.batch)
            for forward in other.batch:
                forward.batch = self.batch

    def returned(self, output: Any, *, tokens: bool = False) -> list[Tensor]:
        """Check the number against the model's outputs; those of them that have a gradient.

        One of the outputs leads with as many entries as the inputs do; where no output has an axis, as in a
        model that returns its loss, the last layer that was called has an axis of that length.  Under a mean
        over ``tokens``, an output may lead with the tokens of all examples.
        """
        tensors = list(tensors_in(output))
        leading = [t.shape[0] for t in tensors if t.dim()]
        if self.inferred and self.examples is not None:
            whose, axes = "that of its output", tuple(leading)
            if not axes and self.latest is not None:
                whose, axes = "that of its last layer's output", self.latest.axes
            fits = {self.examples, self.positions} if tokens else {self.examples}
            if axes and fits.isdisjoint(axes):
                self.problem = (
                    f"the first axis of the model's first input has {self.examples} entries,"
                    f" {whose} {axes[0]}; it is unclear which one counts the examples"
                )
                self.examples = None
        return [t for t in tensors if t.requires_grad]


def begun(declared: Declared, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Forward:
    """The call of a model on these inputs.

    Raises ``ConfigError`` if what the user declares is no number of examples.
    """
    if declared is not None:
        return Forward(_number(declared(*args, **kwargs) if callable(declared) else declared))
    first = next((t for t in tensors_in((args, kwargs)) if t.dim()), None)
    if first is None:
        return Forward(None, "no input of the model is a tensor with an axis that could count the examples")
    if torch.func.debug_unwrap(first) is not first:
        return Forward(None, "the model was called inside torch.func.vmap, which hides the batch")
    forward = Forward(int(first.shape[0]), inferred=True)
    forward.positions = first.shape[:2].numel()
    return forward


def outside(declared: Declared) -> Forward:
    """The call of a layer that is part of no call of the model."""
    if declared is not None and not callable(declared):
        return Forward(_number(declared))
    return Forward(
        None,
        "layers were called without the model itself; call the model, so that its examples can be counted",
    )


def count(batch: Sequence[Forward]) -> int:
    """The number of examples that these calls of one loss share.

    Raises ``ConfigError`` if it is not known, or zero.
    """
    known = sorted({f.examples for f in batch if f.examples is not None})
    if len(known) == 1:
        if known[0] == 0:
            raise ConfigError(Fault("the batch has no examples", hint="skip empty batches"))
        return known[0]
    if known:
        sizes = " and ".join(map(str, known))
        problem = f"one backward pass goes through calls of the model with {sizes} examples"
    else:
        problem = batch[0].problem
    raise ConfigError(Fault(f"the number of examples is not known: {problem}", hint=HINT))


def _number(value: Any) -> int:
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(Fault(f"examples is {value!r}; expected a whole number ≥ 0", path="examples"))
    return value


def tensors_in(what: Any) -> Iterator[Tensor]:
    """The tensors in nested mappings, sequences and dataclasses, in order."""
    if isinstance(what, Tensor):
        yield what
    elif isinstance(what, Mapping):
        for inner in what.values():
            yield from tensors_in(inner)
    elif isinstance(what, (list, tuple)):
        for inner in what:
            yield from tensors_in(inner)
    elif dataclasses.is_dataclass(what) and not isinstance(what, type):
        for f in dataclasses.fields(what):
            yield from tensors_in(getattr(what, f.name))
