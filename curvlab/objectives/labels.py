"""Which vectors are back-propagated from the outputs: data, model, exact, none.

``data`` reuses the backward pass of the gradient and ``none`` needs no backward at all; this file
makes the other two.  Every row carries the square root of its weight in the loss, so that
``Σ v vᵀ`` over the vectors of one example is (in expectation, for ``model``) ∇²ℓ_n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.model.taps import Tape
from curvlab.objectives.gradients import gradients
from curvlab.objectives.nested import each_tensor, tensors_of
from curvlab.objectives.prediction import predicted
from curvlab.protocols.loss import Loss, Weights
from curvlab.protocols.needs import Labels, Needs


class Weighted(Protocol):
    """A chunk's targets and the weights of its terms (a ``samples.Chunk``)."""

    @property
    def targets(self) -> Any:
        """Targets of its examples."""

    @property
    def examples(self) -> int:
        """How many they are."""

    @property
    def weights(self) -> Weights:
        """The weights of its terms."""


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
    _noise: list[Any] = field(default_factory=list)
    _used: int = 0

    def __call__(
        self, kind: Labels, outputs: Any, chunk: Weighted, tape: Tape
    ) -> list[Float[Tensor, "v n s o"]]:
        """Gradient rows of every call, one leading entry per back-propagated vector."""
        f = predicted(self.loss, outputs)
        vectors = self._vectors(kind, each_tensor(Tensor.detach, f), chunk)
        if not tape.calls:
            return []
        per_vector = [_pulled(f, v, tape) for v in vectors]
        rows = []
        for k, call in enumerate(tape.calls):
            found = [call.grads(g[k]) for g in per_vector]
            rows.append(found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found))
        return rows

    def _vectors(self, kind: Labels, f: Any, chunk: Weighted) -> Iterator[Any]:
        """Vectors in the form of the outputs; a chunk's noise is drawn whether or not they are used."""
        if kind is Labels.EXACT:
            return self.loss.hessian_columns(f, chunk.targets, chunk.weights)
        return self._sampled(self._noise_for(f, chunk.examples), f, chunk)

    def _sampled(self, noise: list[Any], f: Any, chunk: Weighted) -> Iterator[Any]:
        for drawn in noise:
            v = self.loss.sampled_column(f, chunk.targets, chunk.weights, drawn)
            # the mean over samples
            yield v if len(noise) == 1 else each_tensor(lambda t: t / len(noise) ** 0.5, v)

    def _noise_for(self, f: Any, examples: int) -> list[Any]:
        if not self._noise:
            self._noise = [
                self.loss.draw(f, self.examples, self.generator) for _ in range(self.needs.samples)
            ]
        some = slice(self._used, self._used + examples)
        self._used = some.stop
        return [each_tensor(lambda t: t[some], noise) for noise in self._noise]


def _pulled(outputs: Any, v: Any, tape: Tape) -> tuple[Tensor | None, ...]:
    """``Jᵀ v`` at the edges of every call; outputs that depend on nothing count as zero."""
    tensors = [t for t in tensors_of(outputs) if t.is_floating_point()]
    parts = [t for t in tensors_of(v) if t.is_floating_point()]
    pairs = [(t, part) for t, part in zip(tensors, parts, strict=True) if t.requires_grad]
    if not pairs:
        return (None,) * len(tape.edges)
    return gradients(
        [t for t, _ in pairs],
        tape.edges,
        [part for _, part in pairs],
        retain_graph=True,
        allow_unused=True,
    )
