"""Pairs are admissible after double damping, and BFGS maps y to s and stays positive definite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab_kbfgs.blocks import Cut
from curvlab_kbfgs.pair import Pair, double_damped, floored, powell
from curvlab_kbfgs.sides import LimitedInverse, MatrixInverse, Side

D = 9
#: one matrix, and blocks of at most 4 of which the last is filled up (3 of 3) or not (5 of 2, filled)
CUTS = {"dense": Cut.of(D, D, 4), "blocks": Cut.of(D, 3, 4), "filled": Cut.of(D, 3, 2)}


def spd(d: int, seed: int) -> Tensor:
    X = normal(2 * d, d, seed=seed)
    return X.mT @ X / (2 * d) + 0.1 * torch.eye(d, dtype=DTYPE)


def dense_of(side: Side) -> Tensor:
    return side @ torch.eye(D, dtype=DTYPE)


def bfgs(H: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The update as it is written."""
    rho = 1 / (s @ y)
    V = torch.eye(len(s), dtype=s.dtype) - rho * torch.outer(s, y)
    return V @ H @ V.mT + rho * torch.outer(s, s)


@pytest.mark.parametrize("seed", range(6))
def test_powell_damping_lifts_s_y_to_its_share_of_y_h_y_and_no_higher(seed: int) -> None:
    H, raw = spd(D, seed), Pair(normal(D, seed=10 + seed), normal(D, seed=20 + seed))
    pair = powell(lambda y: H @ y, raw, 0.2)
    least = 0.2 * (raw.y @ H @ raw.y)
    assert torch.equal(pair.y, raw.y)
    if raw.s @ raw.y >= least:
        assert torch.equal(pair.s, raw.s)
    else:
        assert_close(pair.s @ pair.y, least, dimension=D, condition=100)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_floor_lifts_the_curvature_along_s_to_lambda_and_no_higher(seed: int, relative: bool) -> None:
    raw = Pair(normal(D, seed=seed), normal(D, seed=40 + seed))
    pair = floored(raw, 0.3, relative=relative)
    b = raw.y.norm() / raw.s.norm() if relative else torch.ones((), dtype=DTYPE)
    least = 0.3 * b * (raw.s @ raw.s)
    assert torch.equal(pair.s, raw.s)
    if raw.s @ raw.y >= least:
        assert torch.equal(pair.y, raw.y)
    else:
        assert_close(pair.s @ pair.y, least, dimension=D, condition=100)


def test_relative_damping_does_not_depend_on_the_scale_of_y() -> None:
    """c y and H/c give c y again, and the same s: of any loss times c."""
    H, raw, c = spd(D, 0), Pair(normal(D, seed=1), -normal(D, seed=1) + normal(D, seed=2)), 1e3
    one = double_damped(lambda y: H @ y, raw, 0.2, 0.3, relative=True)
    other = double_damped(lambda y: H @ y / c, Pair(raw.s, c * raw.y), 0.2, 0.3, relative=True)
    assert_close(other.s, one.s, dimension=D, condition=100)
    assert_close(other.y, c * one.y, dimension=D, condition=100)


@pytest.mark.parametrize("name", CUTS)
def test_each_block_maps_its_y_to_its_s_and_is_the_update_as_written(name: str) -> None:
    cut = CUTS[name]
    side = MatrixInverse.identity(cut, torch.empty(0, dtype=DTYPE))
    for k in range(4):
        before = side.H.clone()
        pair = side.damped(Pair(normal(D, seed=k), normal(D, seed=50 + k)), 0.2, 0.3, relative=True)
        side.learn_(pair)
        assert_close(cut.products(side.H, pair.y), pair.s, dimension=D, condition=1e3)
        for block, (s, y) in enumerate(zip(pair.s, pair.y, strict=True)):
            assert_close(side.H[block], bfgs(before[block], s, y), dimension=D, condition=1e3)
    whole = torch.block_diag(*side.H)[:D, :D]
    assert_close(dense_of(side), whole, dimension=D)
    assert_close(side.rmatmul(normal(3, D, seed=7)), normal(3, D, seed=7) @ whole, dimension=D)


@pytest.mark.parametrize("pairs", [1, 3, 4, 7])
def test_limited_memory_is_bfgs_of_the_last_pairs_from_a_multiple_of_the_identity(pairs: int) -> None:
    side = LimitedInverse.identity(D, 4, torch.empty(0, dtype=DTYPE))
    kept: list[Pair] = []
    for k in range(pairs):
        pair = side.damped(Pair(normal(D, seed=k), normal(D, seed=60 + k)), 0.2, 0.3, relative=True)
        side.learn_(pair)
        kept = [*kept, pair][-4:]
    last = kept[-1]
    H = torch.eye(D, dtype=DTYPE) * (last.s @ last.s / (last.s @ last.y))
    for pair in kept:
        H = bfgs(H, pair.s, pair.y)
    assert_close(dense_of(side), H, dimension=D, condition=1e5)
    assert_close((side @ last.y.unsqueeze(1))[:, 0], last.s, dimension=D, condition=1e5)
    assert_close(side.rmatmul(normal(3, D, seed=7)), normal(3, D, seed=7) @ H, dimension=D, condition=1e5)


@pytest.mark.parametrize("name", ["dense", "filled", "limited"])
def test_it_stays_positive_definite_in_float32_over_thousands_of_random_pairs(name: str) -> None:
    like, generator = torch.empty(0), torch.Generator().manual_seed(0)
    side: Side = (
        LimitedInverse.identity(D, 6, like) if name == "limited" else MatrixInverse.identity(CUTS[name], like)
    )
    for k in range(500 if name == "limited" else 2_000):
        s, y = torch.randn(2, D, generator=generator) * torch.logspace(-2, 2, D)[k % D]
        side.learn_(side.damped(Pair(s, y), 0.2, 0.1, relative=True))
        if k % 500 == 499:
            H = (side @ torch.eye(D)).double()
            assert float(torch.linalg.eigvalsh((H + H.mT) / 2)[0]) > 0, f"after {k + 1} pairs"
            assert_close(H, H.mT, dimension=D, condition=float(1e-5 / torch.finfo(DTYPE).eps))


@pytest.mark.parametrize("name", [*CUTS, "limited"])
@pytest.mark.parametrize("bad", ["zero", "infinite", "not a number", "negative"])
def test_a_pair_that_is_not_admissible_changes_nothing(name: str, bad: str) -> None:
    like = torch.empty(0, dtype=DTYPE)
    limited = name == "limited"
    side: Side = LimitedInverse.identity(D, 3, like) if limited else MatrixInverse.identity(CUTS[name], like)
    split = (lambda x: x) if limited else CUTS[name].apart
    good = normal(D, seed=1)
    side.learn_(Pair(split(good), split(2 * good)))
    before = dense_of(side)
    s = torch.zeros(D, dtype=DTYPE) if bad == "zero" else good
    y = {"infinite": good / 0.0, "not a number": good * torch.nan, "negative": -good}.get(bad, good)
    pair = Pair(split(s), split(y))
    assert not bool(pair.admissible.any())
    side.learn_(pair)
    assert torch.equal(dense_of(side), before)


@pytest.mark.parametrize("name", [*CUTS, "limited"])
@pytest.mark.parametrize("factor", [1e-25, 1e15])
def test_a_common_factor_of_s_and_y_changes_nothing_though_its_square_leaves_float32(
    name: str, factor: float
) -> None:
    found = []
    for c in (1.0, factor):
        like = torch.empty(0)
        limited = name == "limited"
        side: Side = (
            LimitedInverse.identity(D, 3, like) if limited else MatrixInverse.identity(CUTS[name], like)
        )
        for k in range(3):
            raw = Pair(c * normal(D, seed=k).float(), c * normal(D, seed=70 + k).float())
            side.learn_(side.damped(raw, 0.2, 0.3, relative=True))
        found.append(side @ torch.eye(D))
    assert not torch.equal(found[0], torch.eye(D))
    assert_close(found[1], found[0], dimension=D, condition=1e3)


@pytest.mark.parametrize("least", [1e-30, 1e-42])
def test_a_curvature_whose_inverse_is_no_number_is_left_out(least: float) -> None:
    """1e-30 has an inverse in float32, 1e-42 has none."""
    s = torch.ones(4) / 2
    pair = Pair(s, least * s)
    assert bool(pair.admissible) == (least > 1e-38)


@pytest.mark.parametrize(("d", "dense", "size"), [(9, 9, 4), (9, 8, 4), (8, 3, 4), (10, 1, 1), (1, 0, 64)])
def test_pieces_are_the_diagonal_blocks(d: int, dense: int, size: int) -> None:
    cut, X = Cut.of(d, dense, size), normal(7, d, seed=0)
    assert torch.equal(cut.together(cut.apart(X)), X)
    whole = torch.block_diag(*[torch.ones(cut.size, cut.size, dtype=DTYPE)] * cut.blocks)[:d, :d]
    assert_close(torch.block_diag(*cut.gram(X))[:d, :d], (X.mT @ X) * whole, dimension=7)
    assert cut.size <= max(size, dense)
