"""Blocks of weights of one magnitude, or zero, by ADMM around any method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.work import work_dtype
from curvlab.protocols.bounds import Bounds, Count, Natural, Positive, check_bounds
from curvlab.protocols.callback import Callback, Notice
from curvlab_compress.blocks import Goal, Tiling, cheapest, losses, magnitudes, projected, signs_of, tangent
from curvlab_compress.matching import matching

#: what ``ratio`` is a fraction of: the blocks of each weight, or those of all weights together
Among = Literal["weight", "network"]

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
    steps: int = 0  #: with the penalty
    hard: bool = False


@dataclass(frozen=True)
class BlockAdmm(Callback[AdmmState]):
    """Micro-structured unification and pruning of weights (arXiv 2106.08301), by ADMM.

    The weight of a linear layer or a convolution is a matrix ``[o, i k]`` in blocks of ``rows × columns``.
    The constraint: of these, the fraction ``ratio`` (rounded down) hold one magnitude each with the signs of
    their weights ("unify"), or zeros ("prune").  ``among`` says of which blocks: of each weight's, or of
    those of all weights together.  With the projection Π on that set,

        W: the method, on the loss plus ``½ ρ ‖W − Z + U‖²``;   Z ← Π(W + U);   U ← U + W − Z,

    the last two at the end of every ``every``-th epoch, or after every ``every_steps`` steps.  Z begins as
    Π(W), and U as zero, at the end of epoch ``start_after``; until then the method trains alone.  The
    penalty's curvature ρI is its ``ridge``: it enters damping or products, never layer statistics.

    At the end of epoch ``harden_after``, if given, ``W ← Π(W)``, the blocks and signs stay what they are
    then, and the penalty ends.  What follows is fine-tuning: the gradient is projected on the directions of
    this set of fixed blocks and signs, and after each step W is projected on the set, so a block is a single
    number, or zero.

    ``only`` are patterns of parameter names.  State: three tensors of the size of each weight.  Reports
    ``block-admm`` after each epoch: numbers stored before and after, and ``‖W − Π(W)‖ / ‖W‖`` over all
    weights.  Raises ``ConfigError`` for a pattern that matches no such weight.
    """

    penalizes = True
    constrains = True

    goal: Goal = "unify"
    ratio: Annotated[float, Bounds(least=0, most=1)] = 0.9
    rows: Count = 1
    columns: Count = 8
    rho: Positive = 1e-3
    among: Among = "weight"
    start_after: Natural = 0  #: epochs of the method alone, before ADMM
    every: Count = 1  #: epochs between updates of Z and U
    every_steps: Count | None = None  #: steps between them, in place of epochs
    harden_after: Count | None = None  #: epochs before fine-tuning; never hard if not given
    only: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.harden_after is not None and self.harden_after < self.start_after:
            what = f"harden_after = {self.harden_after} is before start_after = {self.start_after}"
            raise ConfigError(
                Fault(what, path="harden_after", hint="harden after the method has trained alone")
            )
        if self.every_steps is not None and self.every != 1:
            what = f"every = {self.every} epochs and every_steps = {self.every_steps} steps are both given"
            raise ConfigError(Fault(what, path="every_steps", hint="remove one of them"))

    def init(self, model: nn.Module) -> AdmmState:
        state, weights = AdmmState({}), self._weights(model)
        masks = self._chosen(weights)
        for name, p in weights.items():
            W = _wide(p)
            Z = projected(W, self._tiling(p), masks[name], self.goal)
            state.weights[name] = Split(Z, torch.zeros_like(W), masks[name], signs_of(W))
        return state

    def penalty(self, state: AdmmState, model: nn.Module, at: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        if not self._pulls(state):
            return next(iter(state.weights.values())).Z.new_zeros(())
        away = [(at[n].to(s.Z.dtype) - s.Z + s.U).square().sum() for n, s in state.weights.items() if n in at]
        return 0.5 * self.rho * torch.stack(away).sum()

    def ridge(self, state: AdmmState) -> Mapping[str, float]:
        return dict.fromkeys(state.weights, self.rho) if self._pulls(state) else {}

    def tangent(self, state: AdmmState, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not state.hard:
            return {}
        found = {}
        for name, split in state.weights.items():
            if name in gradient:
                g = gradient[name]
                tiling = self._tiling(g)
                found[name] = tangent(g, tiling, split.mask, self.goal, split.signs.to(g.dtype))
        return found

    def stepped(self, state: AdmmState, model: nn.Module, loss: float) -> None:
        if state.hard:
            for name, p in self._weights(model).items():
                self._project_(p, state.weights[name])
        elif self.every_steps is not None and self._pulls(state):
            state.steps += 1
            if state.steps % self.every_steps == 0:
                self._update_(state, self._weights(model), dual=True)

    def epoch_ended(self, state: AdmmState, model: nn.Module, epoch: int) -> tuple[Notice, ...]:
        state.epochs = epoch
        weights = self._weights(model)
        if epoch == self.harden_after:
            self._harden_(state, weights)
        elif not state.hard and self._due(epoch):
            self._update_(state, weights, dual=epoch > self.start_after)
        return (Notice("block-admm", self._measured(state, weights)),)

    def _pulls(self, state: AdmmState) -> bool:
        """Whether the penalty acts: after the warm start and before fine-tuning."""
        return not state.hard and state.epochs >= self.start_after

    def _due(self, epoch: int) -> bool:
        """Whether Z and U change at the end of this epoch."""
        since = epoch - self.start_after
        return since == 0 or (since > 0 and self.every_steps is None and since % self.every == 0)

    def _update_(self, state: AdmmState, weights: Mapping[str, Tensor], *, dual: bool) -> None:
        """``Z ← Π(W + U)`` and, if ``dual``, ``U ← U + W − Z``."""
        moved = {name: _wide(p) + state.weights[name].U for name, p in weights.items()}
        masks = self._chosen(moved)
        for name, p in weights.items():
            split = state.weights[name]
            split.mask.copy_(masks[name])
            split.Z.copy_(projected(moved[name], self._tiling(p), split.mask, self.goal))
            if dual:
                split.U.add_(_wide(p) - split.Z)

    def _harden_(self, state: AdmmState, weights: Mapping[str, Tensor]) -> None:
        """``W ← Π(W)``, whose blocks and signs stay."""
        masks = self._chosen(weights)
        for name, p in weights.items():
            split = state.weights[name]
            split.mask.copy_(masks[name])
            split.signs.copy_(signs_of(_wide(p)))
            self._project_(p, split)
        state.hard = True

    def _chosen(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The blocks to project, by weight."""
        costs = [losses(_wide(p), self._tiling(p), self.goal) for p in weights.values()]
        if self.among == "network":
            masks = cheapest(costs, self.ratio)
        else:
            masks = [cheapest([cost], self.ratio)[0] for cost in costs]
        return dict(zip(weights, masks, strict=True))

    def _measured(self, state: AdmmState, weights: Mapping[str, Tensor]) -> dict[str, object]:
        """Numbers stored before and after, and how far the weights are from the set."""
        whole = sum(p.numel() for p in weights.values())
        nearest = {} if state.hard else self._chosen(weights)
        stored, off, size = 0, 0.0, 0.0
        for name, p in weights.items():
            W, tiling, split = _wide(p), self._tiling(p), state.weights[name]
            mask = split.mask if state.hard else nearest[name]
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
