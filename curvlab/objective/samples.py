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

from curvlab.objective.losses import Loss, Opaque, weighted


class Source(Protocol):
    """Examples that can be had by index."""

    def rows(self, indices: Tensor) -> tuple[Any, Tensor]:
        """Inputs and targets of these examples, examples leading."""

    def __len__(self) -> int:
        """How many there are."""


@dataclass(frozen=True)
class Chosen:
    """Examples of a source, by index: fetched when they are asked for, as ``dtype`` if that is given."""

    source: Source
    indices: Int[Tensor, " n"]
    dtype: torch.dtype | None = None

    def rows(self, start: int, stop: int) -> tuple[Any, Tensor]:
        """Inputs and targets of the examples from ``start`` to before ``stop``."""
        inputs, targets = self.source.rows(self.indices[start:stop])
        return (inputs, targets) if self.dtype is None else cast((inputs, targets), self.dtype)

    def __len__(self) -> int:
        return int(self.indices.shape[0])


#: inputs and targets, examples leading, or a choice of them
Sample = tuple[Any, Tensor] | Chosen


def cast(pair: tuple[Any, Tensor], dtype: torch.dtype) -> tuple[Any, Tensor]:
    """Floating tensors in another dtype, class indices as they are; one tensor in both places stays one."""
    inputs, targets = pair
    moved = inputs.to(dtype) if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs
    if targets is inputs:
        return moved, moved
    return moved, targets.to(dtype) if targets.is_floating_point() else targets


@dataclass(frozen=True)
class Chunk:
    """Inputs and targets of one micro-batch, and how to come by its row weights."""

    inputs: Any
    targets: Tensor
    weigh: Callable[[Tensor], float | Tensor]
    #: whether it is all of the sample
    whole: bool = False

    @cached_property
    def weights(self) -> float | Tensor:
        """w_r of its rows, found when they are first asked for."""
        return self.weigh(self.targets)

    @property
    def examples(self) -> int:
        """How many it has."""
        return int(self.targets.shape[0])

    def total(self, loss: Loss, outputs: Tensor) -> Float[Tensor, ""]:
        """Σ over its examples of ℓ_n."""
        if isinstance(loss, Opaque):
            return loss.mean(outputs, self.targets) * self.examples
        return weighted(loss.terms(loss.rows(outputs), loss.target_rows(self.targets)), self.weights)

    def share(self, loss: Loss, outputs: Tensor, examples: int) -> Float[Tensor, ""]:
        """What it adds to the mean loss of ``examples``.

        Where it is all of them, the weights are those of the loss's own mean.
        """
        if self.whole and loss.over == "mean":
            return loss.mean(outputs, self.targets)
        return self.total(loss, outputs) / examples


@dataclass(frozen=True)
class MicroBatches:
    """A sample in chunks of at most ``size`` examples, each with the row weights it has in the whole.

    ``like`` says in which dtype and where weights are wanted.
    """

    loss: Loss
    sample: Sample
    like: Tensor
    size: int | None = None

    @property
    def examples(self) -> int:
        """How many the sample has."""
        sample = self.sample
        return len(sample) if isinstance(sample, Chosen) else int(sample[1].shape[0])

    def __len__(self) -> int:
        n = self.examples
        return 1 if self.size is None else max(1, -(-n // self.size))

    def __iter__(self) -> Iterator[Chunk]:
        for inputs, targets in self._pairs():
            yield self._chunk(inputs, targets)

    def first(self, examples: int) -> Chunk:
        """The first few examples, weighted as in the whole; no more than a micro-batch has."""
        return self._chunk(*self._rows(0, min(examples, self.size or self.examples)))

    @cached_property
    def terms(self) -> int:
        """Loss terms per example; 1 for a criterion that we know nothing about."""
        if isinstance(self.loss, Opaque):
            return 1
        targets = self._rows(0, 1)[1] if isinstance(self.sample, Chosen) else self.sample[1]
        return max(1, self.loss.target_rows(targets).shape[0] // targets.shape[0])

    @property
    def mass(self) -> float:
        """What the mean loss is divided by: examples, or the weights of their rows where they have any."""
        rule = self.loss
        if isinstance(rule, Opaque) or rule.over == "sum":
            return float(self.examples)
        _, targets = self._rows(0, min(self.examples, 1))
        if rule.relative_weights(rule.target_rows(targets), self.like) is None:
            return float(self.examples)
        return self.examples / float(self._per_mass)

    @property
    def positions(self) -> int:
        """Loss terms per example, where the loss of one example is their mean; else 1."""
        return self.terms if self.loss.over == "mean" else 1

    def _chunk(self, inputs: Any, targets: Tensor) -> Chunk:
        return Chunk(inputs, targets, self._weights, len(self) == 1 and targets.shape[0] == self.examples)

    def _pairs(self) -> Iterator[tuple[Any, Tensor]]:
        n, size = self.examples, self.size or self.examples
        for start in range(0, max(n, 1), max(size, 1)):
            yield self._rows(start, min(start + size, n))

    def _rows(self, start: int, stop: int) -> tuple[Any, Tensor]:
        sample = self.sample
        if isinstance(sample, Chosen):
            return sample.rows(start, stop)
        if (start, stop) == (0, self.examples):
            return sample
        return sample[0][start:stop], sample[1][start:stop]

    def _weights(self, targets: Tensor) -> float | Tensor:
        rule = self.loss
        if isinstance(rule, Opaque):
            return 1.0
        rows = rule.target_rows(targets)
        if len(self) == 1 and targets.shape[0] == self.examples:
            return rule.row_weights(rows, self.examples, like=self.like)
        relative = rule.relative_weights(rows, self.like)
        if relative is None or rule.over == "sum":
            return rule.row_weights(rows, targets.shape[0], like=self.like)
        return relative * self._per_mass

    @cached_property
    def _per_mass(self) -> Tensor:
        """Examples over what the mean over all rows is divided by; one pass over the targets of a sample."""
        rule, sample = self.loss, self.sample
        pairs = self._pairs() if isinstance(sample, Chosen) else iter([sample])
        masses = [rule.mass(rule.target_rows(targets), self.like) for _, targets in pairs]
        return self.examples / torch.stack(masses).sum()
