"""Settings out of range are refused by the name of the field and the value that came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from curvlab.errors import ConfigError
from curvlab.parts.cautious import Cautious
from curvlab.parts.damping import Constant, LevenbergMarquardt
from curvlab.parts.eigenbasis import Eigenbasis
from curvlab.parts.inverses import Eigen
from curvlab.parts.inverted import Inverted
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.nesterov import Nesterov
from curvlab.parts.radial import RadialBrake
from curvlab.parts.routed import Routed
from curvlab.parts.row_floor import RowFloor
from curvlab.parts.samplers import SubsampledCurvature, Uniform
from curvlab.parts.schedules import Cosine, Linear
from curvlab.parts.steps import Armijo, QuadraticModel, Rate
from curvlab.parts.transforms import Clip, Ema, Momentum, NormConstraint, WeightDecay
from tests.parts.layers import Held, LastFactors

NAN = float("nan")


def sampled(**settings: Any) -> SubsampledCurvature:
    return SubsampledCurvature(Uniform(), **settings)


def inverted(**settings: Any) -> Inverted:
    return Inverted(LastFactors(), Eigen(), **settings)


def eigen(**settings: Any) -> Eigenbasis:
    return Eigenbasis(LastFactors(), **settings)


def iterative(**settings: Any) -> Iterative:
    return Iterative(Held(), ConjugateGradients(), **settings)


def line(**settings: Any) -> Linear:
    return Linear(**{"start": 1.0, "end": 1.0, "steps": 1, **settings})


def curve(**settings: Any) -> Cosine:
    return Cosine(**{"peak": 1.0, "steps": 9, **settings})


WRONG: list[tuple[Callable[..., object], str, list[Any]]] = [
    (Constant, "value", [-1.0, NAN]),
    (LevenbergMarquardt, "initial", [0.0, -1.0, NAN, 1e9]),
    (LevenbergMarquardt, "minimum", [0.0, -1.0]),
    (LevenbergMarquardt, "interval", [0]),
    (LevenbergMarquardt, "factor", [1.0, 0.5, NAN]),
    (LevenbergMarquardt, "low", [0.75, 2.0, NAN]),
    (eigen, "decay", [1.0, -0.1, NAN]),
    (eigen, "observe_every", [0]),
    (eigen, "refresh_every", [0]),
    (inverted, "observe_every", [0, -1]),
    (inverted, "refresh_every", [0]),
    (iterative, "warm_start", [-0.1, 1.1, NAN]),
    (ConjugateGradients, "max_iterations", [0]),
    (ConjugateGradients, "tolerance", [1.0, -1.0, NAN]),
    (Uniform, "batch_size", [0, -3]),
    (sampled, "fraction", [0.0, 1.1, -0.5, NAN]),
    (sampled, "minimum", [0]),
    (line, "start", [-1.0]),
    (line, "end", [-1.0, NAN]),
    (line, "steps", [0]),
    (curve, "peak", [-1.0, NAN]),
    (curve, "end", [-1.0]),
    (curve, "warmup", [-1]),
    (curve, "steps", [0]),
    (Rate, "lr", [-1.0, NAN]),
    (Nesterov, "beta", [1.0, -0.1, NAN]),
    (Cautious, "rate", [-0.1, NAN]),
    (RadialBrake, "outward", [-0.1, 1.1, NAN]),
    (RadialBrake, "inward", [-0.1, 1.1]),
    (RowFloor, "ratio", [-0.1, NAN]),
    (Armijo, "lr", [0.0, -1.0, NAN]),
    (Armijo, "slope", [-0.1, 1.0]),
    (Armijo, "shrink", [0.0, 1.0, 2.0, NAN]),
    (Armijo, "tries", [0]),
    (QuadraticModel, "lr", [0.0, NAN]),
    (Ema, "beta", [1.0, -0.1, NAN]),
    (Momentum, "beta", [1.0, -0.1, NAN]),
    (WeightDecay, "rate", [-1.0, NAN]),
    (Clip, "norm", [0.0, -1.0, NAN]),
    (NormConstraint, "limit", [0.0, -1.0, NAN]),
    (NormConstraint, "every", [0]),
]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [(make, name, value) for make, name, values in WRONG for value in values],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_a_setting_out_of_range_is_named_with_what_came(
    make: Callable[..., object], name: str, value: Any
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**{name: value})
    (fault,) = caught.value.faults
    assert fault.path == name
    assert f"{name} = {value!r}" in fault.message


@pytest.mark.parametrize(
    "part",
    [
        lambda: Constant(0.0), lambda: Rate(0.0), lambda: WeightDecay(0.0), lambda: Ema(0.0),
        lambda: Momentum(0.0),
        lambda: iterative(warm_start=1.0), lambda: sampled(fraction=1.0), lambda: Armijo(slope=0.0),
        lambda: curve(steps=1), lambda: curve(warmup=8), lambda: LevenbergMarquardt(initial=1e8),
        lambda: Constant(Linear(0.0, 1.0, 1)), lambda: Armijo(Cosine(1.0, 2)),
    ],
)  # fmt: skip
def test_the_ends_of_the_ranges_belong_to_them_where_they_mean_something(part: Callable[[], object]) -> None:
    part()


def test_a_schedule_as_long_as_its_warm_up_is_refused() -> None:
    with pytest.raises(ConfigError, match="steps = 5 must be at least 6"):
        Cosine(1.0, steps=5, warmup=5)


def test_curvature_is_sampled_once() -> None:
    with pytest.raises(ConfigError, match="base must not be subsampled-curvature again"):
        SubsampledCurvature(sampled())


def test_routes_lead_somewhere() -> None:
    with pytest.raises(ConfigError, match="routes is empty") as caught:
        Routed({})
    assert caught.value.faults[0].path == "routes"
