"""Blocks of weights of one magnitude, or zero, by ADMM around any method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.linalg.work import work_dtype
from curvlab.protocols.bounds import Bounds, Count, Positive, check_bounds
from curvlab.protocols.callback import Callback, Notice
from curvlab_compress.blocks import Goal, Tiling, chosen, magnitudes, projected, signs_of
from curvlab_compress.matching import matching

#: layers whose weights are matrices of blocks
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Split:
    """One weight's copy Z in the set, its scaled multiplier U, the blocks chosen last, and the signs kept."""

    Z: Tensor
    U: Tensor
    mask: Tensor
    signs: Tensor


@dataclass
class AdmmState:
    """By name of the weight; ``epochs`` so far, and whether the weights are in the set for good."""

    weights: dict[str, Split]
    epochs: int = 0
    hard: bool = False


@dataclass(frozen=True)
class BlockAdmm(Callback[AdmmState]):
    """Micro-structured unification and pruning of weights (arXiv 2106.08301), by ADMM.

    The weight of a linear layer or a convolution is a matrix ``[o, i k]`` in blocks of ``rows × columns``.
    The constraint: of these, the fraction ``ratio`` (rounded down) hold one magnitude each with the signs of
    their weights ("unify"), or zeros ("prune").  For each weight W, with the projection Π on that set,

        W: the method, on the loss plus ``½ ρ ‖W − Z + U‖²``;   Z ← Π(W + U);   U ← U + W − Z,

    the last two at the end of every ``every``-th epoch; Z begins as Π(W).  The penalty's curvature ρI is its
    ``ridge``: it enters damping or products, never layer statistics.

    At the end of epoch ``harden_after``, if given, ``W ← Π(W)``, the blocks and signs stay what they are
    then, and the penalty ends.  What follows is fine-tuning: after each step W is projected on this set of
    fixed blocks and signs, so a block is a single number, or zero.

    ``only`` are patterns of parameter names.  State: three tensors of the size of each weight.  Reports
    ``block-admm`` after each epoch: numbers stored before and after, and ``‖W − Π(W)‖ / ‖W‖`` over all
    weights.  Raises ``ConfigError`` for a pattern that matches no such weight.
    """

    penalizes = True

    goal: Goal = "unify"
    ratio: Annotated[float, Bounds(least=0, most=1)] = 0.9
    rows: Count = 1
    columns: Count = 8
    rho: Positive = 1e-3
    every: Count = 1
    harden_after: Count | None = None  #: epochs of ADMM before fine-tuning; never hard if not given
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, model: nn.Module) -> AdmmState:
        state = AdmmState({})
        for name, p in self._weights(model).items():
            W, tiling = _wide(p), self._tiling(p)
            mask = chosen(W, tiling, self.ratio, self.goal)
            Z = projected(W, tiling, mask, self.goal)
            state.weights[name] = Split(Z, torch.zeros_like(W), mask, signs_of(W))
        return state

    def penalty(self, state: AdmmState, model: nn.Module, at: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        if state.hard:
            return next(iter(state.weights.values())).Z.new_zeros(())
        away = [(at[n].to(s.Z.dtype) - s.Z + s.U).square().sum() for n, s in state.weights.items() if n in at]
        return 0.5 * self.rho * torch.stack(away).sum()

    def ridge(self, state: AdmmState) -> Mapping[str, float]:
        return {} if state.hard else dict.fromkeys(state.weights, self.rho)

    def stepped(self, state: AdmmState, model: nn.Module, loss: float) -> None:
        if state.hard:
            for name, p in self._weights(model).items():
                self._project_(p, state.weights[name])

    def epoch_ended(self, state: AdmmState, model: nn.Module, epoch: int) -> tuple[Notice, ...]:
        state.epochs = epoch
        weights = self._weights(model)
        for name, p in weights.items():
            split, tiling, W = state.weights[name], self._tiling(p), _wide(p)
            if not state.hard and epoch == self.harden_after:
                split.mask.copy_(chosen(W, tiling, self.ratio, self.goal))
                split.signs.copy_(signs_of(W))
                self._project_(p, split)
            elif not state.hard and epoch % self.every == 0:
                split.mask.copy_(chosen(W + split.U, tiling, self.ratio, self.goal))
                split.Z.copy_(projected(W + split.U, tiling, split.mask, self.goal))
                split.U.add_(W - split.Z)
        state.hard = state.hard or epoch == self.harden_after
        return (Notice("block-admm", self._measured(state, weights)),)

    def _measured(self, state: AdmmState, weights: Mapping[str, Tensor]) -> dict[str, object]:
        """Numbers stored before and after, and how far the weights are from the set."""
        whole = sum(p.numel() for p in weights.values())
        stored, off, size = 0, 0.0, 0.0
        for name, p in weights.items():
            W, tiling, split = _wide(p), self._tiling(p), state.weights[name]
            mask = split.mask if state.hard else chosen(W, tiling, self.ratio, self.goal)
            stored += magnitudes(tiling, mask, self.goal)
            off += float((W - projected(W, tiling, mask, self.goal)).square().sum())
            size += float(W.square().sum())
        away = (off / size) ** 0.5 if size else 0.0
        return {"weights": whole, "magnitudes": stored, "distance": away, "hard": state.hard}

    def _project_(self, p: Tensor, split: Split) -> None:
        p.copy_(projected(_wide(p), self._tiling(p), split.mask, self.goal, split.signs))

    def _tiling(self, p: Tensor) -> Tiling:
        return Tiling(tuple(p.shape), self.rows, self.columns)

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights that are constrained, by name; raises ``ConfigError`` for a pattern without any."""
        found: dict[str, Tensor] = {}
        for module_name, module in model.named_modules():
            if isinstance(module, KINDS) and module.weight.requires_grad:
                found[f"{module_name}.weight" if module_name else "weight"] = module.weight
        what = "weight of a linear layer or a convolution"
        return {name: found[name] for name in matching(list(found), self.only, "only", what)}


def _wide(p: Tensor) -> Tensor:
    """A copy in the working dtype."""
    return p.detach().to(work_dtype(p.dtype), copy=True)
