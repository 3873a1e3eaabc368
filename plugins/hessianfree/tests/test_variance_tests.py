"""The tests of variance: when a sample grows, and to which size."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.errors import UnsupportedEvidence
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.evidence import Evaluation, Solve, Step, StepOutcome, Variance
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab_hessianfree.growing import GrowingState
from curvlab_hessianfree.variance_tests import InnerProductTest, NormTest, VarianceTest, passing_size

N = 1000


def singles(n: int, spread: float = 1.0, d: int = 6, seed: int = 0) -> Tensor:
    """Gradients of n examples, around a common one."""
    g = torch.Generator().manual_seed(seed)
    return 0.3 + spread * torch.randn(n, d, generator=g, dtype=torch.float64)


def outcome(rows: Tensor, known: bool = True) -> StepOutcome:
    """A step at which the sample's gradients were these, their variances by definition."""
    mean = rows.mean(0)
    variance = Variance((rows - mean).square().sum() / (len(rows) - 1), (rows @ mean).var())
    gradient = BlockVector(BlockLayout({"w": (rows.shape[1],)}), mean)
    seen = Evaluation(len(rows), torch.zeros(()), gradient, variance=variance if known else None)
    return StepOutcome(seen, Solve(gradient), Step(gradient, 1.0))


def critical(part: VarianceTest, rows: Tensor, population: int | None) -> float:
    """The smallest theta that passes, by definition."""
    mean = rows.mean(0)
    B, square = len(rows), float(mean.dot(mean))
    left = 1.0 if population is None else (population - B) / (population - 1)
    if isinstance(part, NormTest):
        return math.sqrt(float((rows - mean).square().sum()) / (B - 1) / B * left / square)
    return math.sqrt(float((rows @ mean).var()) / B * left) / square


def learned(part: VarianceTest, rows: Tensor, size: int = N) -> GrowingState:
    """The state after one step on a sample that had these gradients."""
    state = part.init(size, len(rows), 0)
    part.learn(state, outcome(rows))
    return state


TESTS = (NormTest, InnerProductTest)


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("B", [2, 17, 64, 333])
def test_at_the_critical_theta_the_suggested_size_is_the_present_one(
    test: type[VarianceTest], B: int, finite: bool
) -> None:
    rows, population = singles(B), N if finite else None
    part = test(theta=critical(test(), rows, population), finite_population=finite)
    seen = outcome(rows).before
    assert seen.variance is not None
    suggested = part.suggested(seen.variance, float(seen.gradient.dot(seen.gradient)), population)
    assert suggested == pytest.approx(B, rel=1e-12)
    assert learned(part, rows).gradient == B


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("test", TESTS)
def test_below_the_critical_theta_it_grows_and_above_it_stays(test: type[VarianceTest], finite: bool) -> None:
    rows = singles(64)
    theta = critical(test(), rows, N if finite else None)
    assert learned(test(theta=theta * 0.99, finite_population=finite), rows).gradient > 64
    assert learned(test(theta=theta * 1.01, finite_population=finite), rows).gradient == 64


@pytest.mark.parametrize("population", [None, 50, 1000])
@pytest.mark.parametrize("bound", [1e-3, 0.1, 2.0])
def test_the_passing_size_is_the_one_at_which_the_means_variance_is_the_bound(
    bound: float, population: int | None
) -> None:
    B = passing_size(3.0, bound, population)
    left = 1.0 if population is None else (population - B) / (population - 1)
    assert 3.0 / B * left == pytest.approx(bound, rel=1e-12)


def test_the_finite_population_factor_is_the_variance_of_a_mean_without_replacement() -> None:
    values = torch.tensor([0.0, 1.0, 4.0, 9.0, 25.0], dtype=torch.float64)
    for B in (1, 2, 3, 4, 5):
        means = torch.stack([torch.stack(c).mean() for c in itertools.combinations(values, B)])
        bound = float(means.var(correction=0))
        # the population's own variance, as a sample of one draw has it
        assert passing_size(float(values.var(correction=0)), bound, 5) == pytest.approx(B)


def test_without_variance_every_size_passes_and_without_gradient_only_all_examples_do() -> None:
    assert passing_size(0.0, 0.0, 10) == passing_size(0.0, 0.0) == passing_size(-1e-9, 1.0) == 0
    assert passing_size(2.0, 0.0, 10) == 10
    assert passing_size(2.0, 0.0) == math.inf


@pytest.mark.parametrize("test", TESTS)
def test_one_change_is_bounded_and_the_data_are_the_end(test: type[VarianceTest]) -> None:
    part = test(theta=1e-6, max_growth=1.5)
    state = part.init(N, 64, 0)
    sizes = [64]
    while state.gradient < N:
        part.learn(state, outcome(singles(state.gradient)))
        sizes.append(state.gradient)
        assert sizes[-1] <= math.ceil(1.5 * sizes[-2])
        assert sizes[-1] > sizes[-2]
    assert part.draw(state).gradient.numel() == N


@pytest.mark.parametrize("test", TESTS)
def test_a_sample_never_shrinks(test: type[VarianceTest]) -> None:
    part = test(theta=1e6)
    state = part.init(N, 64, 0)
    for spread in (10.0, 1e-3, 0.0):
        part.learn(state, outcome(singles(64, spread)))
        assert state.gradient == 64


@pytest.mark.parametrize("finite", [True, False])
def test_the_suggested_size_is_taken_when_the_bound_on_growth_allows(finite: bool) -> None:
    rows = singles(64)
    theta = critical(NormTest(), rows, N if finite else None) / 1.1
    part = NormTest(theta=theta, finite_population=finite)
    seen = outcome(rows).before
    assert seen.variance is not None
    size = part.suggested(seen.variance, float(seen.gradient.dot(seen.gradient)), N if finite else None)
    assert 64 < size < 128
    assert learned(part, rows).gradient == math.ceil(size)


def test_the_curvature_sample_keeps_its_ratio_and_its_cap() -> None:
    part = NormTest(theta=1e-6, curvature_ratio=0.25, curvature_cap=100)
    state = part.init(N, 64, 0)
    seen = [(state.gradient, state.curvature)]
    for _ in range(4):
        part.learn(state, outcome(singles(state.gradient)))
        seen.append((state.gradient, state.curvature))
    assert seen == [(64, 16), (128, 32), (256, 64), (512, 100), (1000, 100)]


def test_disjoint_samples_stop_when_the_data_are_used_up() -> None:
    part = NormTest(theta=1e-6, acceptance="disjoint", acceptance_size=100)
    state = part.init(N, 64, 0)
    for _ in range(9):
        part.learn(state, outcome(singles(state.gradient)))
    assert state.gradient + state.curvature + state.acceptance == N
    assert part.needs(state) == GRADIENT_ONLY


def test_held_out_examples_are_not_of_the_population() -> None:
    """With all others in the sample, its gradient is the exact one."""
    part = NormTest(theta=1e-9, gradient=1.0, acceptance="held-out", acceptance_size=100)
    state = part.init(N, 64, 0)
    part.learn(state, outcome(singles(900)))
    assert state.gradient == 900
    assert (
        NormTest(gradient=899, acceptance="held-out", acceptance_size=100)
        .needs(NormTest(gradient=899, acceptance="held-out", acceptance_size=100).init(N, 64, 0))
        .variance
    )


@pytest.mark.parametrize("interval", [1, 3])
def test_variance_is_asked_for_every_interval_and_not_of_a_full_sample(interval: int) -> None:
    part = NormTest(theta=1e6, interval=interval)
    state, asked = part.init(N, 64, 0), []
    for _ in range(7):
        before = part.needs(state)
        part.draw(state)
        assert part.needs(state) == before  # a draw does not change what its step is asked for
        asked.append(before.variance)
        part.learn(state, outcome(singles(64), known=before.variance))
    assert asked == [k % interval == 0 for k in range(7)]
    everything = NormTest(gradient=1.0)
    assert everything.needs(everything.init(N, 64, 0)) == GRADIENT_ONLY


def test_the_inner_product_test_grows_later_than_the_norm_test() -> None:
    """The variance along one direction is part of that along all."""
    rows = singles(64, d=50)
    norm, inner = (critical(test(), rows, N) for test in TESTS)
    assert inner < norm / 2


def test_orthogonality_bounds_the_variance_across_the_gradient() -> None:
    rows = singles(64, d=50)
    mean = rows.mean(0)
    square = float(mean.dot(mean))
    across = rows - torch.outer(rows @ mean / square, mean)  # without the part along the mean
    variance = float(across.square().sum()) / 63
    nu = math.sqrt(variance / 64 * (N - 64) / (N - 1) / square)
    assert learned(InnerProductTest(theta=1e6, orthogonality=nu * 1.001), rows).gradient == 64
    assert learned(InnerProductTest(theta=1e6, orthogonality=nu * 0.98), rows).gradient > 64
    assert learned(InnerProductTest(theta=1e6), rows).gradient == 64


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("test", TESTS)
def test_what_is_not_finite_changes_nothing(test: type[VarianceTest], bad: float) -> None:
    rows = singles(64)
    rows[0, 0] = bad
    assert learned(test(theta=1e-6), rows).gradient == 64


def test_an_objective_that_knows_no_variance_is_named() -> None:
    part = NormTest()
    state = part.init(N, 64, 0)
    with pytest.raises(UnsupportedEvidence, match="NormTest: expected the variance"):
        part.learn(state, outcome(singles(64), known=False))


@pytest.mark.parametrize(
    "settings",
    [{"theta": 0.0}, {"max_growth": 0.5}, {"curvature_ratio": 0.0}, {"curvature_ratio": 1.5}],
    ids=str,
)
def test_a_setting_out_of_range_is_a_fault_of_its_own(settings: dict[str, Any]) -> None:
    (name,) = settings
    for test in TESTS:
        with pytest.raises(Exception, match=name) as found:
            test(**settings)
        assert found.value.faults[0].path == name  # type: ignore[attr-defined]


def test_wanting_variance_is_what_a_loss_and_its_gradient_do_not_leave_behind() -> None:
    part = NormTest()
    needs = part.needs(part.init(N, 64, 0))
    assert needs == Needs(variance=True)
    assert needs.objective
