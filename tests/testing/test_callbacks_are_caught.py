"""Every check of the suite of callbacks finds a part that breaks its law."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from curvlab.parts.early_stop import EarlyStop
from curvlab.protocols.callback import Notice
from tests.engine.anchored import Anchor, AnchorState, Pace, Plane
from tests.testing.caught import breaking, draw, frame, seeded, switch, unequal


def drawing(self: Any, state: Any, model: Any, loss: float) -> None:
    draw()


def seeded_center(self: Any, state: Any, model: Any, loss: float) -> None:
    state.centers[0].fill_(seeded())


def switching(self: Any, state: Any, model: Any, loss: float) -> None:
    switch()


@dataclass
class LateState(AnchorState):
    more: torch.Tensor | None = None


def late(self: Any, model: Any) -> LateState:
    return LateState(**vars(Anchor().init(model)))


def late_stepped(self: Any, state: Any, model: Any, loss: float) -> None:
    state.more = torch.zeros(2)


@dataclass
class Unsaved(AnchorState):
    pulls: int = field(default=0, metadata={"transient": True})


def unsaved(self: Any, model: Any) -> Unsaved:
    return Unsaved(**vars(Anchor().init(model)))


def unsaved_stepped(self: Any, state: Any, model: Any, loss: float) -> None:
    state.pulls += 1
    state.centers[0].fill_(state.pulls)


def half_held(self: Any, state: Any, model: Any, at: Any) -> torch.Tensor:
    return 0.5 * self.rho * torch.stack([(t.detach() * t).sum() for t in at.values()]).sum()


def doubled(self: Any, state: Any) -> dict[str, float]:
    return dict.fromkeys(state.names, 2 * self.rho)


def shortened(self: Any, state: Any, gradient: Any) -> dict[str, torch.Tensor]:
    return {self.parameter: 0.5 * gradient[self.parameter]}


def cast(self: Any, state: Any, model: Any, epoch: int) -> tuple[Notice, ...]:
    next(iter(model.parameters())).data = next(iter(model.parameters())).data[:, :1].clone()
    return ()


def tensors(self: Any, state: Any, model: Any, epoch: int) -> tuple[Notice, ...]:
    return (Notice("anchored", {"center": state.centers[0]}),)


def at_once(self: Any, state: Any) -> str:
    return "enough"


CALLBACKS = [
    unequal(Pace),
    breaking("random_state", Anchor, stepped=drawing),
    breaking("determinism", Anchor, stepped=seeded_center),
    breaking("autograd", Anchor, stepped=switching),
    breaking("eager", Anchor, init=late, stepped=late_stepped, also=("resume",), why="a new twin lacks it"),
    breaking("resume", Anchor, init=unsaved, stepped=unsaved_stepped),
    breaking("penalty", Anchor, penalty=half_held),
    breaking("ridge", Anchor, ridge=doubled),
    breaking("tangent", Plane, tangent=shortened),
    breaking("rates", Pace, rates=lambda self, state: {"0.weight": -1.0}),
    breaking("shapes", Pace, epoch_ended=cast, also=("resume",), why="a twin of other shapes cannot follow"),
    breaking("notices", Anchor, epoch_ended=tensors),
    breaking("stops", Pace, stops=at_once),
]

SOUND = [
    ("callback", Anchor()),
    ("callback", Pace()),
    ("callback", Plane()),
    ("callback", EarlyStop(patience=1)),
]

caught, shown, passes = frame({"callback": CALLBACKS}, SOUND, nor=("fail", "skip"))
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes
