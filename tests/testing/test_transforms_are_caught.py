"""Every check of the suites of transforms and samplers finds a part that breaks its law."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.parts.samplers import Uniform, UniformState
from curvlab.parts.transforms import AverageState, Clip, Ema, Momentum
from curvlab.protocols.needs import Needs
from curvlab.testing.conformance import SamplerConformance
from tests.testing.caught import (
    Broken,
    broken,
    draw,
    frame,
    seeded,
    switch,
    unequal,
)

# transforms


def transform(
    check: str, then: Any = None, also: tuple[str, ...] = (), why: str = "", base: Any = None, **methods: Any
) -> Broken:
    """A transform that goes otherwise than ``base``'s, which is momentum."""
    base = base or Momentum(0.5)
    if then is not None:
        methods["__call__"] = lambda self, state, v, where: then(base, state, v, where)
    made = broken(type(base), **methods)
    return Broken(check, made(**{f: getattr(base, f) for f in base.__dataclass_fields__}), also, why)


def drawing(base: Any, state: Any, v: Any, where: Any) -> Any:
    draw()
    return base(state, v, where)


def seeded_vector(base: Any, state: Any, v: Any, where: Any) -> Any:
    return base(state, v, where).owned().scale_(seeded())


def switching(base: Any, state: Any, v: Any, where: Any) -> Any:
    switch()
    return base(state, v, where)


@dataclass
class LateAverage:
    average: BlockVector | None = None
    count: int = 0
    mass: float = 0.0


def late_average(base: Any, state: Any, v: Any, where: Any) -> Any:
    if state.average is None:
        state.average = v.zeros_like()
    return base(state, v, where)


@dataclass
class UnsavedCount(AverageState):
    count: int = field(default=0, metadata={"transient": True})


def doubled(base: Any, state: Any, v: Any, where: Any) -> Any:
    return base(state, v, where).to(torch.float64)


def in_place(base: Any, state: Any, v: Any, where: Any) -> Any:
    return v.scale_((base.norm / where.norm(v)).clamp(max=1.0))


def not_lent(base: Any, state: Any, v: Any, where: Any) -> Any:
    state.combine_(base.beta, v)
    return state


@dataclass
class Last:
    """The vector before."""

    vector: BlockVector


def difference(base: Any, state: Any, v: Any, where: Any) -> Any:
    found = v - state.vector
    state.vector = v
    return found


def wiping_the_gradient(base: Any, state: Any, v: Any, where: Any) -> Any:
    found = base(state, v, where)
    where.gradient.flat.zero_()
    return found


def below_the_factors(base: Any, state: Any, v: Any, where: Any) -> Any:
    return BlockVector(v.layout, 2.0 * v._flat)


def unit_length(base: Any, state: Any, v: Any, where: Any) -> Any:
    return v * (1.0 / where.norm(v))


def alone(base: Any, state: Any, v: Any, where: Any) -> Any:
    return v.owned().scale_((base.norm / v.norm()).clamp(max=1.0))


TRANSFORMS = [
    unequal(Momentum),
    transform("random_state", drawing),
    transform("determinism", seeded_vector),
    transform("autograd", switching),
    transform(
        "eager",
        late_average,
        ("resume",),
        "a fresh state cannot take what it has no tensor for",
        base=Ema(),
        init=lambda self, like: LateAverage(),
    ),
    transform("resume", base=Ema(), init=lambda self, like: UnsavedCount(like.zeros_like(), 0)),
    transform("obligations", doubled),
    transform("borrowed", in_place, base=Clip(0.5)),
    transform("state_is_lent", not_lent),
    transform("remembers", difference, init=lambda self, like: Last(like.zeros_like())),
    transform("surroundings", wiping_the_gradient),
    transform("factored", below_the_factors),
    transform("zero", unit_length),
    transform("separable", alone, base=Clip(0.5)),
]

# samplers


def sampler(
    check: str, then: Any = None, also: tuple[str, ...] = (), why: str = "", **methods: Any
) -> Broken:
    """Draws that are made into others."""
    if then is not None:
        methods["draw"] = lambda self, state: then(state, Uniform.draw(self, state))
    return Broken(check, broken(Uniform, **methods)(), also, why)


def drawn_globally(state: Any, found: Any) -> Any:
    draw()
    return found


def turned_by_seed(state: Any, found: Any) -> Any:
    turned = found.gradient.roll(torch.initial_seed() % 2)
    return replace(found, gradient=turned)


def switched_draw(state: Any, found: Any) -> Any:
    switch()
    return found


@dataclass
class LateUniform(UniformState):
    seen: Tensor | None = None


def counted(state: Any, found: Any) -> Any:
    state.seen = found.gradient.clone()
    return found


@dataclass
class UnsavedUniform(UniformState):
    drawn: int = field(default=0, metadata={"transient": True})


def starting(kind: Any) -> Any:
    def init(self: Any, size: int, batch_size: int, seed: int) -> Any:
        return kind(size=size, batch_size=min(batch_size, size), seed=seed, drawn=0)

    return init


def as_floats(state: Any, found: Any) -> Any:
    return replace(found, gradient=found.gradient.double())


def from_one(state: Any, found: Any) -> Any:
    return replace(found, acceptance=found.acceptance + 1)


SHARED = torch.Generator().manual_seed(0)


def from_one_generator(state: Any, found: Any) -> Any:
    return replace(found, gradient=torch.randint(0, state.size, (4,), generator=SHARED))


BUFFER = torch.zeros(1000, dtype=torch.int64)


def in_one_buffer(state: Any, found: Any) -> Any:
    n = len(found.curvature)
    BUFFER[:n] = found.curvature
    return replace(found, curvature=BUFFER[:n])


SAMPLERS = [
    unequal(Uniform),
    sampler("random_state", drawn_globally),
    sampler("determinism", turned_by_seed),
    sampler("autograd", switched_draw),
    sampler(
        "eager",
        counted,
        ("resume",),
        "a fresh state cannot take what it has no tensor for",
        init=starting(LateUniform),
    ),
    sampler("resume", init=starting(UnsavedUniform)),
    sampler("obligations", as_floats),
    sampler("range", from_one),
    sampler(
        "seed", from_one_generator, ("determinism", "resume"), "what no state holds, no state brings back"
    ),
    sampler("needs", needs=lambda self, state: Needs(variance=state.drawn // state.batch_size % 2 == 1)),
    sampler("draws_are_kept", in_one_buffer),
]

EVERY = {
    "transform": TRANSFORMS,
    "sampler": SAMPLERS,
}

SOUND = [
    ("transform", Momentum()),
    ("sampler", Uniform()),
]

caught, shown, passes = frame(EVERY, SOUND, elsewhere={"sampler": ("disjoint",)})
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes


def test_a_claim_that_samples_are_disjoint_is_held_against_the_draws() -> None:
    class Claiming(SamplerConformance):
        disjoint = (("gradient", "acceptance"),)

    assert Claiming.of(Uniform()).run().failed == ("disjoint",)
    assert SamplerConformance.of(Uniform()).run()["disjoint"].result == "skip"
