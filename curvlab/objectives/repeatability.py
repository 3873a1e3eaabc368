"""Is the objective one function of the parameters?  Products and trial losses make no sense otherwise.

Layers that draw from torch's global generators repeat themselves (``randomness``), and buffers are put
back.  What cannot be repeated from outside is a layer with a generator of its own (numpy's, Python's, its
own ``torch.Generator``) or with a state that is no buffer; such a layer is found out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.errors import Unrepeatable
from curvlab.objectives.nested import tensors_of
from curvlab.objectives.products import values_at
from curvlab.objectives.randomness import Randomness
from curvlab.objectives.samples import Chunk
from curvlab.protocols.loss import Loss

#: two evaluations may differ by the order of their sums: so many units of rounding
ROUNDING = 1e3


def require_repeatable(model: nn.Module, loss: Loss, chunk: Chunk, randomness: Randomness) -> Any:
    """The outputs on ``chunk``; raises ``Unrepeatable`` if two passes differ, naming the layer."""

    def once() -> tuple[Any, Tensor]:
        with randomness.repeated():
            outputs = values_at(model, {}, chunk.inputs)
            return outputs, chunk.total(loss, outputs).detach()

    (outputs, value), (again, value_again) = once(), once()
    if not all(map(same, tensors_of(outputs), tensors_of(again))):
        raise Unrepeatable(_culprit(model, chunk, randomness))
    if not same(value, value_again):
        raise Unrepeatable(f"the criterion {loss!r}")
    return outputs


def _culprit(model: nn.Module, chunk: Chunk, randomness: Randomness) -> str:
    passes = []
    for _ in range(2):
        with randomness.repeated(), watching(model) as watch:
            values_at(model, {}, chunk.inputs)
        passes.append(watch.seen)
    return first_difference(model, passes[0], passes[1], same)


def first_difference(
    model: nn.Module, a: Sequence[Event], b: Sequence[Event], alike: Callable[[Tensor, Tensor], bool]
) -> str:
    """In words, the module in which two passes begin to differ."""
    names = {name: type(module).__name__ for name, module in model.named_modules()}
    found = ""
    for first, second in zip(a, b, strict=False):
        if (first.where, first.what) != (second.where, second.what):
            found = first.inside
            break
        if len(first.tensors) != len(second.tensors) or not all(map(alike, first.tensors, second.tensors)):
            found = first.where if first.what == "output" else first.inside
            break
    return f'layer "{found}" ({names[found]})' if found else f"the model itself ({names['']})"


@dataclass(frozen=True)
class Event:
    """What a module was given or gave, and which module's forward was under way around it."""

    where: str
    what: str
    inside: str
    tensors: tuple[Tensor, ...]


@dataclass
class Watch:
    """Every module's inputs and outputs during a pass, in order."""

    seen: list[Event] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def begin(self, name: str, given: Any) -> None:
        """A module is called."""
        self.seen.append(Event(name, "input", self.open[-1] if self.open else "", tuple(_tensors(given))))
        self.open.append(name)

    def end(self, name: str, output: Any) -> None:
        """It returns."""
        self.open.pop()
        self.seen.append(Event(name, "output", self.open[-1] if self.open else "", tuple(_tensors(output))))


@contextmanager
def watching(model: nn.Module) -> Iterator[Watch]:
    """Record what every module of the model is given and gives."""
    watch, handles = Watch(), []
    for name, module in model.named_modules():

        def begin(m: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            watch.begin(name, (args, kwargs))

        def end(m: nn.Module, args: Any, output: Any, name: str = name) -> None:
            watch.end(name, output)

        handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
        handles.append(module.register_forward_hook(end))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _tensors(what: Any) -> Iterator[Tensor]:
    """Copies of the tensors in nested containers: they may be changed in place later."""
    return (t.detach().clone() for t in tensors_of(what))


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding; whatever is not finite must not be finite twice."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite = a[torch.isfinite(a)]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    allowed = ROUNDING * torch.finfo(a.dtype).eps * size
    return torch.allclose(a, b, rtol=0.0, atol=allowed, equal_nan=True)
