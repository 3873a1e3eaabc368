"""Every check of the suite of averages finds a part that breaks its law."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from curvlab.parts.schedule_free import ScheduleFree
from curvlab.parts.weight_means import MeanState, TailEma, WeightEma, lerp_
from tests.testing.caught import breaking, draw, frame, seeded, switch, unequal


def drawing(self: Any, state: Any, theta: Any, taken: Any) -> None:
    draw()
    WeightEma.stepped(self, state, theta, taken)


def by_seed(self: Any, state: Any, theta: Any, taken: Any) -> None:
    WeightEma.stepped(self, state, theta, taken)
    state.mean["scale"].mul_(seeded())


def switching(self: Any, state: Any, theta: Any, taken: Any) -> None:
    switch()
    WeightEma.stepped(self, state, theta, taken)


def late(self: Any, theta: Any) -> MeanState:
    return MeanState({})


def late_stepped(self: Any, state: Any, theta: Any, taken: Any) -> None:
    if not state.count:
        state.mean = {
            n: t.to(torch.promote_types(t.dtype, torch.float32), copy=True) for n, t in theta.items()
        }
    WeightEma.stepped(self, state, theta, taken)


@dataclass
class Unsaved(MeanState):
    count: int = field(default=0, metadata={"transient": True})


def unsaved(self: Any, theta: Any) -> Unsaved:
    return Unsaved(WeightEma().init(theta).mean)


def shorter(self: Any, state: Any, theta: Any) -> Any:
    return {n: t for n, t in state.mean.items() if n != "scale"}


def shrunk(self: Any, state: Any, theta: Any, taken: Any) -> None:
    lerp_(state.mean, {n: 0.9 * t for n, t in theta.items()}, 0.5)


def writing(self: Any, state: Any, theta: Any) -> Any:
    lerp_(state.mean, theta, 0.5)
    return {n: t.clone() for n, t in state.mean.items()}


def aliasing(self: Any, theta: Any) -> MeanState:
    return MeanState({n: t.to(torch.promote_types(t.dtype, torch.float32)) for n, t in theta.items()})


def narrow(self: Any, theta: Any) -> MeanState:
    return MeanState({n: t.clone() for n, t in theta.items()})


AVERAGES = [
    unequal(WeightEma),
    breaking("random_state", WeightEma, stepped=drawing),
    breaking("determinism", WeightEma, stepped=by_seed),
    breaking("autograd", WeightEma, stepped=switching),
    breaking(
        "eager", WeightEma, ("weights", "resume"), "nothing is there before", init=late, stepped=late_stepped
    ),
    breaking("resume", WeightEma, init=unsaved),
    breaking("weights", WeightEma, weights=shorter),
    breaking("at_rest", WeightEma, stepped=shrunk),
    breaking("moves", ScheduleFree, moves=False),
    breaking("reads", WeightEma, weights=writing),
    breaking("copies", WeightEma, init=aliasing),
    breaking("width", WeightEma, init=narrow),
]

SOUND = [("average", WeightEma()), ("average", TailEma(start=0.5)), ("average", ScheduleFree())]

caught, shown, passes = frame({"average": AVERAGES}, SOUND, nor=("fail", "skip"))
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes
