"""Callbacks for tests: an anchor that pulls parameters, a pace that slows one down, a plane for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvlab.protocols.callback import Callback, Notice


@dataclass
class AnchorState:
    """Where each parameter is pulled to, and how many steps and epochs there were."""

    centers: list[Tensor]
    names: list[str]
    steps: int = 0
    epochs: int = 0


@dataclass(frozen=True)
class Anchor(Callback[AnchorState]):
    """½ rho ‖θ − c‖² with c = 1 everywhere, moved to θ at the end of each epoch."""

    penalizes = True

    rho: float = 0.5
    curved: bool = True  #: whether it says that its curvature is rho I
    last: int = 10**9  #: epochs until it ends the run

    def init(self, model: nn.Module) -> AnchorState:
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        return AnchorState([torch.ones_like(p).detach() for p in named.values()], list(named))

    def penalty(self, state: AnchorState, model: nn.Module, at: Mapping[str, Tensor]) -> Tensor:
        away = [(at[n] - c).square().sum() for n, c in zip(state.names, state.centers, strict=True)]
        return 0.5 * self.rho * torch.stack(away).sum()

    def ridge(self, state: AnchorState) -> Mapping[str, float]:
        return dict.fromkeys(state.names, self.rho) if self.curved else {}

    def stepped(self, state: AnchorState, model: nn.Module, loss: float) -> None:
        state.steps += 1

    def epoch_ended(self, state: AnchorState, model: nn.Module, epoch: int) -> tuple[Notice, ...]:
        state.epochs += 1
        named = dict(model.named_parameters())
        for name, center in zip(state.names, state.centers, strict=True):
            center.copy_(named[name].detach())
        return (Notice("anchored", {"steps": state.steps}),)

    def stops(self, state: AnchorState) -> str | None:
        return "enough" if state.epochs >= self.last else None


@dataclass(frozen=True)
class Pace(Callback[None]):
    """The first parameter moves at ``rate`` times the rate of the others."""

    scales_rates = True

    rate: float = 0.25
    parameter: str = "0.weight"

    def init(self, model: nn.Module) -> None:
        return None

    def rates(self, state: None) -> Mapping[str, float]:
        return {self.parameter: self.rate}


@dataclass(frozen=True)
class Plane(Callback[None]):
    """The entries of one parameter keep their sum."""

    constrains = True

    parameter: str = "0.weight"

    def init(self, model: nn.Module) -> None:
        return None

    def tangent(self, state: None, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        g = gradient[self.parameter]
        return {self.parameter: g - g.mean()}
