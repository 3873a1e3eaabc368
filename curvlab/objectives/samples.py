"""Samples: the examples of one purpose, and how they are cut into micro-batches.

A sample is a pair of inputs and targets, or a choice of examples whose rows are fetched chunk by chunk:
then no more of them are in memory at once than a micro-batch has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.nested import each_tensor, tensors_of
from curvlab.objectives.prediction import predicted
from curvlab.protocols.loss import Loss, Weights


class Source(Protocol):
    """Examples that can be had by index."""

    def rows(self, indices: Tensor) -> tuple[Any, Any]:
        """Inputs and targets of these examples, examples leading."""

    def __len__(self) -> int:
        """How many there are."""


@dataclass(frozen=True)
class IndexedExamples:
    """Examples of a source, by index: fetched when they are asked for, as ``dtype`` if that is given."""

    source: Source
    indices: Int[Tensor, " n"]
    dtype: torch.dtype | None = None

    def rows(self, start: int, stop: int) -> tuple[Any, Any]:
        """Inputs and targets of the examples from ``start`` to before ``stop``."""
        inputs, targets = self.source.rows(self.indices[start:stop])
        return (inputs, targets) if self.dtype is None else cast((inputs, targets), self.dtype)

    def __len__(self) -> int:
        return int(self.indices.shape[0])


#: inputs and targets, examples leading, or a choice of them
Sample = tuple[Any, Any] | IndexedExamples


def cast(pair: tuple[Any, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """Floating tensors in another dtype, class indices as they are; one tensor in both places stays one."""
    inputs, targets = pair

    def change(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() else t

    moved = each_tensor(change, inputs)
    return moved, moved if targets is inputs else each_tensor(change, targets)


def examples_of(inputs: Any, targets: Any) -> int:
    """How many examples a pair has: the length of the axis that its tensors lead with.

    Targets decide if they agree, else the one length that targets and inputs have in common.  Raises
    ``ConfigError`` if that leaves none, or several.
    """
    theirs, given = _lengths(targets), _lengths(inputs)
    for found in (theirs, given if not theirs else theirs & given):
        if len(found) == 1:
            return next(iter(found))
    raise ConfigError(
        Fault(
            f"the number of examples is unclear: the first axes of the inputs have {_listed(given)} entries,"
            f" those of the targets {_listed(theirs)}",
            hint="give tensors whose first axis counts the examples",
        )
    )


def require_cuttable(inputs: Any, targets: Any, size: int) -> None:
    """Raise ``ConfigError`` unless every tensor of a pair leads with the examples."""
    given, theirs = _lengths(inputs), _lengths(targets)
    if len(given | theirs) > 1:
        what = (
            f"{_listed(given)} inputs and {_listed(theirs)} targets cannot be split into equal micro-batches"
        )
        hint = "give inputs and targets whose first axis counts the examples"
        raise ConfigError(Fault(f"micro_batch = {size}: {what}", hint=hint))


def _lengths(what: Any) -> set[int]:
    return {int(t.shape[0]) for t in tensors_of(what) if t.dim()}


def _listed(lengths: set[int]) -> str:
    return " and ".join(map(str, sorted(lengths))) or "no"


@dataclass(frozen=True)
class Chunk:
    """Inputs and targets of one micro-batch of ``examples``, and the rule of its terms' weights."""

    inputs: Any
    targets: Any
    examples: int
    weigh: Callable[[Any, int], Weights]
    #: whether it is all of the sample
    whole: bool = False

    @cached_property
    def weights(self) -> Weights:
        """The weights of its terms, found when they are first used."""
        return self.weigh(self.targets, self.examples)

    def total(self, loss: Loss, outputs: Any) -> Float[Tensor, ""]:
        """Σ over its examples of ℓ_n; raises ``ConfigError`` if outputs and targets do not fit the loss."""
        f = predicted(loss, outputs)
        loss.require(f, self.targets)
        return loss.total(f, self.targets, self.weights)

    def share(self, loss: Loss, outputs: Any, examples: int) -> Float[Tensor, ""]:
        """What it adds to the mean loss of ``examples``.

        Where it is all of them, the weights are those of the loss's own mean.
        """
        if not self.whole or loss.over == "sum":
            return self.total(loss, outputs) / examples
        f = predicted(loss, outputs)
        loss.require(f, self.targets)
        return loss.mean(f, self.targets)


@dataclass(frozen=True)
class MicroBatches:
    """A sample in chunks of at most ``size`` examples, each with the row weights it has in the whole.

    ``like`` says in which dtype and where weights are wanted.
    """

    loss: Loss
    sample: Sample
    like: Tensor
    size: int | None = None

    @cached_property
    def examples(self) -> int:
        """How many the sample has."""
        sample = self.sample
        return len(sample) if isinstance(sample, IndexedExamples) else examples_of(sample[0], sample[1])

    def __len__(self) -> int:
        n = self.examples
        return 1 if self.size is None else max(1, -(-n // self.size))

    def __iter__(self) -> Iterator[Chunk]:
        for start, stop in self._ranges():
            yield self._chunk(start, stop)

    def first(self, examples: int) -> Chunk:
        """The first few examples, weighted as in the whole; no more than a micro-batch has."""
        return self._chunk(0, min(examples, self.size or self.examples, self.examples))

    @cached_property
    def terms(self) -> int:
        """Loss terms per example; 1 for a criterion that is known by its value alone."""
        targets = self._rows(0, 1)[1] if isinstance(self.sample, IndexedExamples) else self.sample[1]
        examples = 1 if isinstance(self.sample, IndexedExamples) else self.examples
        return self.loss.terms_per_example(targets, examples)

    @property
    def total_weight(self) -> float:
        """What the mean loss is divided by: examples, or the weights of their terms where they have any."""
        _, targets = self._rows(0, min(self.examples, 1))
        first = self.loss.total_weight(targets, self.like)
        if first is None:
            return float(self.examples)
        if first.dim():
            raise ConfigError(
                Fault(
                    f"{self.loss.name}: its heads weight their terms differently, so that the mean over"
                    " several processes has no single weight",
                    hint="train in one process, or use losses without ignored labels and class weights",
                )
            )
        return self.examples / float(self._per_weight)

    @property
    def positions(self) -> int:
        """Loss terms per example, where the loss of one example is their mean; else 1."""
        return self.terms if self.loss.over == "mean" else 1

    def _chunk(self, start: int, stop: int) -> Chunk:
        n = stop - start
        return Chunk(*self._rows(start, stop), n, self._weights, len(self) == 1 and n == self.examples)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        n, size = self.examples, self.size or self.examples
        for start in range(0, n, max(size, 1)):
            yield start, min(start + size, n)

    def _rows(self, start: int, stop: int) -> tuple[Any, Any]:
        sample = self.sample
        if isinstance(sample, IndexedExamples):
            return sample.rows(start, stop)
        if (start, stop) == (0, self.examples):
            return sample

        def cut(t: Tensor) -> Tensor:
            return t[start:stop] if t.dim() and t.shape[0] == self.examples else t

        return each_tensor(cut, sample[0]), each_tensor(cut, sample[1])

    def _weights(self, targets: Any, examples: int) -> Weights:
        return self.loss.term_weights(targets, examples, self.like, lambda: self._per_weight)

    @cached_property
    def _per_weight(self) -> Tensor:
        """Examples over what the mean over all terms is divided by; one pass over the targets of a sample."""
        sample = self.sample
        pairs = (
            (self._rows(*r) for r in self._ranges())
            if isinstance(sample, IndexedExamples)
            else iter([sample])
        )
        found = [self.loss.total_weight(targets, self.like) for _, targets in pairs]
        return self.examples / torch.stack([w for w in found if w is not None]).sum(0)
