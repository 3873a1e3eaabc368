"""Which vectors are back-propagated from the outputs: data, model, exact, none.

``data`` reuses the backward pass of the gradient and ``none`` needs no backward at all; this file
makes the other two.  Every row carries the square root of its weight in the loss, so that
``Σ v vᵀ`` over the vectors of one example is (in expectation, for ``model``) ∇²ℓ_n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.model.taps import Tape
from curvlab.objectives.loss import Loss
from curvlab.objectives.opaque import Opaque
from curvlab.protocols.needs import Labels, Needs


class Weighted(Protocol):
    """A chunk's row weights (a ``products.Chunk``)."""

    @property
    def weights(self) -> float | Tensor:
        """w_r."""


@dataclass
class Backward:
    """Back-propagates sampled or exact vectors of a batch of ``examples``, chunk by chunk.

    The noise of sampled labels is drawn for the whole batch at once, on the first chunk, so that
    micro-batches see the labels that one batch would see.
    """

    loss: Loss
    needs: Needs
    examples: int
    generator: torch.Generator
    _noise: list[Tensor] = field(default_factory=list)
    _used: int = 0

    def __call__(
        self, kind: Labels, outputs: Tensor, chunk: Weighted, tape: Tape
    ) -> list[Float[Tensor, "v n s o"]]:
        """Gradient rows of every call, one leading entry per back-propagated vector."""
        if isinstance(self.loss, Opaque):
            raise self.loss.unknown(str(kind))
        vectors = self._vectors(kind, outputs, chunk)  # which draws the chunk's noise, calls or none
        if not tape.calls:
            return []
        per_vector = [
            torch.autograd.grad(outputs, tape.edges, v, retain_graph=True, allow_unused=True) for v in vectors
        ]
        rows = []
        for k, call in enumerate(tape.calls):
            found = [call.grads(g[k]) for g in per_vector]
            rows.append(found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found))
        return rows

    def _vectors(self, kind: Labels, outputs: Tensor, chunk: Weighted) -> Sequence[Tensor]:
        rows = self.loss.rows(outputs.detach())
        w = chunk.weights
        root = w**0.5 if isinstance(w, float) else w.sqrt().unsqueeze(-1)
        if kind is Labels.EXACT:
            columns = [self.loss.column(rows, k) for k in range(self.loss.columns(rows))]
            found = [v for column in columns for v in _one_position_each(column, outputs.shape[0])]
        else:
            found = [self.loss.sampled(rows, noise) for noise in self._noise_for(rows, outputs)]
            root = root / len(found) ** 0.5  # the mean over samples
        return [self.loss.unrow(v * root, outputs) for v in found]

    def _noise_for(self, rows: Tensor, outputs: Tensor) -> list[Tensor]:
        if not self._noise:
            total = rows.shape[0] // outputs.shape[0] * self.examples
            shape = (total, rows.shape[1])
            self._noise = [self.loss.noise(shape, rows, self.generator) for _ in range(self.needs.samples)]
        start, self._used = self._used, self._used + rows.shape[0]
        return [noise[start : self._used] for noise in self._noise]


def _one_position_each(rows: Float[Tensor, "r c"], examples: int) -> list[Float[Tensor, "r c"]]:
    """The rows, position by position: an example with a loss term at each of P positions has P columns
    where one with a single term has one, and back-propagated together they would interfere.
    """
    positions = rows.shape[0] // examples
    if positions == 1:
        return [rows]
    each = rows.view(examples, positions, -1)
    found = []
    for p in range(positions):
        alone = torch.zeros_like(each)
        alone[:, p] = each[:, p]
        found.append(alone.view(rows.shape))
    return found
