"""Orthogonal factors and sparse singular values, as a penalty around any method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.work import work_dtype
from curvlab.protocols.bounds import Bounds, Count, Fraction, Natural, NotNegative, Positive, check_bounds
from curvlab.protocols.callback import Callback, Notice
from curvlab_compress.export import kept, weights_of
from curvlab_compress.svd_layer import Factors, factors_of, svd_layers

#: ‖s‖₁/‖s‖₂, ‖s‖₁²/‖s‖₂², or ‖s‖₁
Measure = Literal["hoyer", "hoyer-square", "l1"]

#: a fraction that is not zero, and may be all
Share = Annotated[float, Bounds(above=0, most=1)]

#: ‖s‖₂² is at least this: the measures of a layer of zeros stay finite
FLOOR = 1e-20


@dataclass
class SvdState:
    """Epochs so far; by layer, 1 for each singular value that is trained and 0 for each that was pruned."""

    masks: dict[str, Tensor]
    epochs: int = 0


@dataclass(frozen=True)
class SvdTraining(Callback[SvdState]):
    """SVD training (Yang et al. 2020, arXiv 2004.09031) of the layers that the task ``svd`` factorizes.

    Adds ``λ_o Σ (‖UᵀU − I‖² + ‖VᵀV − I‖²)/r² + λ_s Σ R(s)`` over layers, λ_o being ``orthogonality`` and λ_s
    ``sparsity``.  R is ``measure``.  λ_s counts from the end of epoch ``sparse_from`` on, and until pruning.
    At the end of epoch ``prune_after``, if given, the smallest singular values of each layer are set to zero
    as long as the squares that are lost stay within ``energy`` times their sum.  Pruning then goes on until
    at most the fraction ``keep`` of the rank (rounded down, at least one) is left.  The epochs that follow
    are fine-tuning, in which they stay zero.  Pruned columns leave the penalty.  The paper has no ``keep``.

    Orthonormal columns have unit length, so a layer's weight grows by its singular values alone.  Methods
    read no layer there: their fallback trains s, by steps of about the rate, while s grows by a factor of
    several.  ``scale_rate`` multiplies that rate.

    The penalty is not quadratic and has no ridge.  It costs ``(m + n) r²`` multiplications a layer and step.
    Reports ``svd-ranks`` after each epoch: the ranks left, the largest ``‖UᵀU − I‖/r`` of any factor, and the
    numbers in the factors of these ranks.  Raises ``ConfigError`` for a model without such layers.
    """

    penalizes = True

    orthogonality: NotNegative = 1.0
    sparsity: NotNegative = 1e-3
    measure: Measure = "hoyer"
    sparse_from: Natural = 0  #: epochs of orthogonality alone
    prune_after: Count | None = None  #: epochs before pruning; never if not given
    energy: Fraction = 1e-2  #: share of Σ s² that pruning may take from a layer
    keep: Share = 1.0  #: largest share of a layer's rank that stays, whatever the energy; at least one value
    scale_rate: Positive = 1.0  #: rate of singular values, in units of that which the method gives them

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.prune_after is not None and self.prune_after < self.sparse_from:
            what = f"prune_after = {self.prune_after} is before sparse_from = {self.sparse_from}"
            raise ConfigError(Fault(what, path="prune_after", hint="prune after sparse epochs"))

    def init(self, model: nn.Module) -> SvdState:
        masks = {name: torch.ones_like(layer.scale.weight.detach()) for name, layer in svd_layers(model)}
        if not masks:
            raise ConfigError(
                Fault(
                    "svd-training: the model has no factorized layers",
                    hint='wrap the task: [task] use = "svd", with the task itself in [task.of]',
                )
            )
        return SvdState(masks)

    def penalty(self, state: SvdState, model: nn.Module, at: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        sparse = self.sparsity if self.sparse_from <= state.epochs and not self._pruned(state) else 0.0
        terms = []
        for name, f in _factors(state, model, at):
            # pruned columns count as if they were orthonormal
            mask = state.masks[name].to(f.s.dtype)
            both = _off(f.U, mask).square().sum() + _off(f.V, mask).square().sum()
            terms.append(self.orthogonality / len(f.s) ** 2 * both)
            if sparse:
                terms.append(sparse * self._sparseness(f.s * mask))
        return torch.stack(terms).sum()

    @property
    def scales_rates(self) -> bool:  # type: ignore[override]
        """Whether singular values have a rate of their own."""
        return self.scale_rate != 1.0

    def rates(self, state: SvdState) -> Mapping[str, float]:
        if not self.scales_rates:
            return {}
        return {f"{name}.scale.weight" if name else "scale.weight": self.scale_rate for name in state.masks}

    def stepped(self, state: SvdState, model: nn.Module, loss: float) -> None:
        if self._pruned(state):
            for name, layer in svd_layers(model):
                layer.scale.weight.mul_(state.masks[name].to(layer.scale.weight.dtype))

    def epoch_ended(self, state: SvdState, model: nn.Module, epoch: int) -> tuple[Notice, ...]:
        state.epochs = epoch
        if epoch == self.prune_after:
            for name, layer in svd_layers(model):
                state.masks[name].copy_(self._kept(layer.scale.weight))
                layer.scale.weight.mul_(state.masks[name].to(layer.scale.weight.dtype))
        at = {n: p.detach() for n, p in model.named_parameters()}
        errors = [
            float(torch.linalg.matrix_norm(_off(Q, state.masks[name].to(Q.dtype)))) / len(f.s)
            for name, f in _factors(state, model, at)
            for Q in (f.U, f.V)
        ]
        whole, parts = weights_of(model)
        ranks = {name: kept(layer) for name, layer in svd_layers(model)}
        detail = {"ranks": ranks, "orthogonality": max(errors), "weights": parts, "dense": whole}
        return (Notice("svd-ranks", detail),)

    def _kept(self, s: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
        """1 for each singular value that pruning leaves, by energy and by rank."""
        return within_energy(s, self.energy) * largest(s, max(math.floor(self.keep * len(s)), 1))

    def _pruned(self, state: SvdState) -> bool:
        return self.prune_after is not None and state.epochs >= self.prune_after

    def _sparseness(self, s: Float[Tensor, " r"]) -> Float[Tensor, ""]:
        one = s.abs().sum()
        if self.measure == "l1":
            return one
        two = s.square().sum().clamp(min=FLOOR)
        return one / two.sqrt() if self.measure == "hoyer" else one.square() / two


def within_energy(s: Float[Tensor, " r"], energy: float) -> Float[Tensor, " r"]:
    """1 for each entry that stays, 0 for the smallest ones whose squares sum to at most ``energy`` of all.

    The largest entry always stays.
    """
    squares, order = s.detach().double().square().sort(stable=True)
    lost = squares.cumsum(0) <= energy * squares.sum()
    lost[-1] = False
    mask = torch.ones_like(s)
    mask[order[lost]] = 0.0
    return mask


def largest(s: Float[Tensor, " r"], count: int) -> Float[Tensor, " r"]:
    """1 for the ``count`` entries of largest magnitude, 0 for the others."""
    mask = torch.zeros_like(s)
    mask[s.detach().abs().sort(stable=True).indices[-count:]] = 1.0
    return mask


def _factors(state: SvdState, model: nn.Module, at: Mapping[str, Tensor]) -> list[tuple[str, Factors]]:
    """U, s and V of every layer at these parameters, in the working dtype."""
    named, found = dict(model.named_parameters()), []
    for name, layer in svd_layers(model):
        start = f"{name}." if name else ""
        three = [f"{start}{part}.weight" for part in ("right", "scale", "left")]
        right, s, left = (t.to(work_dtype(t.dtype)) for t in (at.get(n, named[n]) for n in three))
        found.append((name, factors_of(right, s, left, layer.split)))
    return found


def _off(Q: Float[Tensor, "m r"], mask: Float[Tensor, " r"]) -> Float[Tensor, "r r"]:
    """``QᵀQ − I`` of the columns that the mask keeps, zero elsewhere."""
    kept = Q * mask
    return kept.mT @ kept - mask.diag()
