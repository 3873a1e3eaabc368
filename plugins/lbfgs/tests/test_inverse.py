"""H v: in two sweeps, pair by pair and as a matrix; and what H is of the pairs it was made from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from curvlab.linalg.secants import Pairs, Secant, Which
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab_lbfgs.inverse import in_two_sweeps, two_loops, weights
from curvlab_lbfgs.memory import empty, learn
from plugins.lbfgs.tests.dense import as_matrix, bfgs, chosen, conjugate, held, matrix, solved, vector

N = 12
CONDITIONS = (5.0, 20.0, 100.0)


def off(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


# the three ways to compute it


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 9), condition=st.floats(1.0, 100.0), seed=st.integers(0, 99))
def test_two_sweeps_are_two_loops_are_the_dense_recursion(m: int, condition: float, seed: int) -> None:
    pairs = chosen(matrix(N, condition, seed), m, seed=seed)
    H, memory = bfgs(pairs), held(pairs)
    v = normal(N, seed=seed + 7)
    flat = [(p.s.flat, p.y.flat) for p in pairs]
    assert off(two_loops(flat, v), H @ v) < 1e-10
    assert off(as_matrix(memory) @ v, H @ v) < 1e-10


@pytest.mark.parametrize("to", [0.0, 0.3, 1.0, 40.0])
def test_under_another_damping_it_is_that_of_the_shifted_pairs(to: float) -> None:
    pairs = chosen(matrix(N, 50.0), 5, damping=1.0)
    shifted = [p.shifted(to) for p in pairs]
    assert off(as_matrix(held(pairs), to), bfgs(shifted)) < 1e-10


def test_every_pair_is_shifted_from_its_own_damping() -> None:
    A = matrix(N, 50.0)
    pairs = [*chosen(A, 2, damping=0.1), *chosen(A, 2, damping=7.0, seed=3), *chosen(A, 2, seed=4)]
    assert off(as_matrix(held(pairs), 2.0), bfgs([p.shifted(2.0) for p in pairs])) < 1e-10


def test_a_shifted_pair_is_a_pair_of_the_shifted_matrix() -> None:
    A, unit = matrix(N, 50.0), torch.eye(N, dtype=DTYPE)
    for pair in chosen(A, 4, damping=0.5):
        y = pair.shifted(3.0).y.flat
        assert_close(y, (A + 3.0 * unit) @ pair.s.flat, condition=50.0)


def test_gamma_may_be_given_to_the_loops() -> None:
    (pair,) = chosen(matrix(N, 5.0), 1)
    v = normal(N, seed=3)
    v -= pair.s.flat * (v @ pair.s.flat) / (pair.s.flat @ pair.s.flat)
    v_free = v - pair.y.flat * 0  # orthogonal to s: the first loop leaves it, γ scales it
    once, twice = (two_loops([(pair.s.flat, pair.y.flat)], v_free, g) for g in (1.0, 2.0))
    assert_close(twice, 2 * once)


# what it is


@pytest.mark.parametrize("condition", CONDITIONS)
def test_all_pairs_of_a_full_run_make_the_inverse(condition: float) -> None:
    A = matrix(N, condition)
    H = as_matrix(held(conjugate(A, N, Which.ALL)))
    assert off(H @ A, torch.eye(N, dtype=DTYPE)) < 1e-10


@pytest.mark.parametrize(
    ("which", "condition"),
    [
        *((w, c) for w in (Which.FIRST, Which.LAST) for c in CONDITIONS),
        *((Which.EVEN, c) for c in CONDITIONS[:2]),  # rounding leaves pairs far apart less conjugate
    ],
)
@pytest.mark.parametrize("m", [1, 3, 6])
def test_conjugate_pairs_are_all_reproduced_and_make_as_many_unit_eigenvalues(
    which: Which, m: int, condition: float
) -> None:
    A = matrix(N, condition)
    pairs = conjugate(A, m, which)
    assert len(pairs) <= m
    assert which is Which.EVEN or len(pairs) == m
    H = as_matrix(held(pairs))
    for pair in pairs:
        assert off(H @ pair.y.flat, pair.s.flat) < 1e-10
    values = torch.linalg.eigvals(H @ A).real
    assert int(((values - 1).abs() < 1e-8).sum()) == len(pairs), values


def test_of_pairs_that_are_not_conjugate_the_newest_is_reproduced() -> None:
    pairs = chosen(matrix(N, 50.0), 5)
    H = as_matrix(held(pairs))
    assert off(H @ pairs[-1].y.flat, pairs[-1].s.flat) < 1e-10
    assert off(H @ pairs[0].y.flat, pairs[0].s.flat) > 1e-3


def test_a_solvers_products_are_the_differences_of_its_residuals() -> None:
    """y = r_l − r_{l+1}: the sign by which a residual b − A x and a pair go together."""
    A, b = matrix(N, 20.0), normal(N, seed=1)
    for k, pair in enumerate(solved(A, b, 6, Pairs(6, Which.ALL)).secants):
        x0, x1 = (solved(A, b, i, Pairs()).x.flat for i in (k, k + 1))
        step = x1 - x0
        factor = float(step @ pair.s.flat / (pair.s.flat @ pair.s.flat))
        assert_close(factor * pair.s.flat, step, condition=1e4)
        assert_close(factor * pair.y.flat, (b - A @ x0) - (b - A @ x1), condition=1e4)


@settings(deadline=None, max_examples=30)
@given(exponents=st.lists(st.integers(-30, 30), min_size=4, max_size=4), damping=st.sampled_from([0.0, 0.4]))
def test_a_common_factor_of_s_and_y_changes_nothing(exponents: list[int], damping: float) -> None:
    pairs = chosen(matrix(N, 20.0), 4)
    scaled = [
        Secant(p.s * (sign * 10.0**e), p.y * (sign * 10.0**e), p.damping)
        for p, e, sign in zip(pairs, exponents, (1, -1, 1, -1), strict=True)
    ]
    assert off(as_matrix(held(scaled), damping), as_matrix(held(pairs), damping)) < 1e-12


def test_short_steps_are_pairs_too_in_float32() -> None:
    """Products of four of their entries, as in BFGS's formula, would be zero there."""
    A = matrix(N, 20.0)
    pairs = chosen(A, 3)
    tiny = [
        Secant((p.s * 1e-16).to(torch.float32), (p.y * 1e-16).to(torch.float32), p.damping) for p in pairs
    ]
    assert off(as_matrix(held(tiny)).double(), bfgs(pairs)) < 1e-4


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 9), seed=st.integers(0, 99), damping=st.floats(0.0, 10.0))
def test_it_is_symmetric_and_positive_definite(m: int, seed: int, damping: float) -> None:
    H = as_matrix(held(chosen(matrix(N, 100.0, seed), m, seed=seed)), damping)
    assert off(H, H.mT) < 1e-10
    assert float(torch.linalg.eigvalsh((H + H.mT) / 2).min()) > 0


def test_pairs_that_a_damping_turns_round_are_left_out() -> None:
    """From λ = 3 back to λ = 0, a direction of curvature −1 is none to go along."""
    A = torch.diag(torch.tensor([-1.0, *range(1, N)], dtype=DTYPE))
    pairs = [
        Secant(vector(e), vector(A @ e + 3.0 * e), 3.0)
        for e in torch.eye(N, dtype=DTYPE)[[4, 0, 7]]  # the second is the one
    ]
    memory = held(pairs)
    assert off(as_matrix(memory, 0.0), bfgs([pairs[0].shifted(0.0), pairs[2].shifted(0.0)])) < 1e-12
    assert off(as_matrix(memory, 3.0), bfgs(pairs)) < 1e-12
    assert weights(memory, -20.0) is None


def test_no_pair_is_no_inverse() -> None:
    assert weights(empty(3, vector(normal(N, seed=0))), 0.0) is None


# what it costs


class Allocations(TorchDispatchMode):
    """New tensors of at least ``least`` numbers, made by any operation under it."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.made, self.known = least, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.least:
            at = out.untyped_storage().data_ptr()
            if at not in old | self.known:
                self.known.add(at)
                self.made += 1
        return out


@pytest.mark.parametrize("damping", [1.0, 2.5])
def test_applying_makes_one_vector_at_any_damping(damping: float) -> None:
    n = 4000
    pairs = tuple(Secant(vector(s), vector(2.0 * s), 1.0) for s in (normal(n, seed=k) for k in range(6)))
    memory, v = held(pairs), vector(normal(n, seed=9))
    with Allocations(n) as counted:
        w = weights(memory, damping)
        assert w is not None
        in_two_sweeps(memory, w, v)
    assert counted.made == 1


def test_in_float32_it_is_as_accurate_as_the_loops_where_it_nearly_cancels() -> None:
    """The gradient of a stiff direction: H v is a thousandth of γ v."""
    n, k = 20_000, 16
    values = torch.arange(1, n + 1, dtype=DTYPE) ** -1.5 + 1e-3
    A = torch.diag(values[:64])  # the pairs of a solve, made where it is small
    b = normal(64, seed=1)
    pad = torch.zeros(n - 64, dtype=DTYPE)
    pairs = [
        Secant(vector(torch.cat([p.s.flat, pad]).float()), vector(torch.cat([p.y.flat, pad]).float()), 0.0)
        for p in solved(A, b, k, Pairs(k, Which.FIRST)).secants
    ]
    v = vector((values * normal(n, seed=2)).float())
    exact = two_loops([(p.s.flat.double(), p.y.flat.double()) for p in pairs], v.flat.double())
    loops = two_loops([(p.s.flat, p.y.flat) for p in pairs], v.flat)
    memory = empty(k, v)
    assert learn(memory, pairs) == k
    w = weights(memory, 0.0)
    assert w is not None
    sweeps = in_two_sweeps(memory, w, v).flat
    assert off(sweeps.double(), exact) < 10 * off(loops.double(), exact) + 1e-6
