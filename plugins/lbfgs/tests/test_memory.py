"""Which pairs are let in, where they lie, and that their inner products are theirs."""

from __future__ import annotations

import pytest
import torch

from curvlab.linalg.secants import Secant
from curvlab.linalg.vectors import BlockVector
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab_lbfgs.memory import Memory, begin, complete, empty, forget, learn, least_cosine
from plugins.lbfgs.tests.dense import as_matrix, bfgs, chosen, matrix, vector

N = 12


def at_cosine(cosine: float, dtype: torch.dtype = DTYPE) -> Secant:
    """A pair whose s and y enclose the angle of this cosine."""
    s, y = torch.zeros(N, dtype=dtype), torch.zeros(N, dtype=dtype)
    s[0], y[0], y[1] = 2.0, 3.0 * cosine, 3.0 * (1 - cosine * cosine) ** 0.5
    return Secant(vector(s), vector(y), 0.0)


def stepped(memory: Memory, pair: Secant) -> bool:
    """The pair by way of a step and two gradients."""
    before = vector(normal(N, seed=99).to(pair.s.dtype))
    begin(memory, pair.s * -0.5, 2.0, before)
    return complete(memory, before + pair.y)


def solved_by(memory: Memory, pair: Secant) -> bool:
    return learn(memory, [pair]) == 1


both_ways = pytest.mark.parametrize("way", [stepped, solved_by])


@both_ways
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_pair_is_let_in_above_the_least_cosine(dtype: torch.dtype, way: object) -> None:
    assert callable(way)
    least = 1e-10 if dtype == torch.float64 else 1e-6
    assert least_cosine(dtype) == least
    for cosine, let_in in ((1.0, True), (0.1, True), (-0.1, False), (0.0, False)):
        memory = empty(3, vector(torch.zeros(N, dtype=dtype)))
        assert way(memory, at_cosine(cosine, dtype)) is let_in
        assert memory.count == let_in
    for factor, let_in in ((2.0, True), (0.5, False)):  # exactly representable: no gradient in between
        assert (
            solved_by(empty(3, vector(torch.zeros(N, dtype=dtype))), at_cosine(factor * least, dtype))
            is let_in
        )


def test_other_dtypes_let_in_what_their_rounding_allows() -> None:
    assert least_cosine(torch.bfloat16) == 10 * 2.0**-7


@both_ways
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["s", "y"])
def test_a_pair_that_is_not_finite_is_not_let_in_and_leaves_no_trace(
    which: str, bad: float, way: object
) -> None:
    assert callable(way)
    memory, good = empty(3, vector(torch.zeros(N, dtype=DTYPE))), chosen(matrix(N, 5.0), 1)[0]
    assert way(memory, good)
    H = as_matrix(memory)
    s, y = good.s.clone(), good.y.clone()
    (s if which == "s" else y).flat[3] = bad
    assert not way(memory, Secant(s, y, 0.0))
    assert torch.equal(as_matrix(memory), H)


@both_ways
def test_a_step_of_length_zero_is_no_pair(way: object) -> None:
    assert callable(way)
    zero = vector(torch.zeros(N, dtype=DTYPE))
    assert not way(empty(2, zero), Secant(zero, zero, 0.0))


def test_what_is_not_admissible_leaves_the_others_as_they_are() -> None:
    good = chosen(matrix(N, 20.0), 3)
    memory = empty(4, good[0].s)
    assert learn(memory, [good[0], at_cosine(-0.5), good[1], at_cosine(0.0), good[2]]) == 3
    assert float((as_matrix(memory) - bfgs(good)).norm()) < 1e-10


def test_a_solve_without_an_admissible_pair_leaves_the_pairs_of_the_one_before() -> None:
    good = chosen(matrix(N, 20.0), 3)
    memory = empty(4, good[0].s)
    assert learn(memory, good) == 3
    H = as_matrix(memory)
    assert learn(memory, [at_cosine(-0.5)]) == 0
    assert learn(memory, []) == 0
    assert torch.equal(as_matrix(memory), H)


def test_of_more_pairs_than_there_are_rows_the_last_are_held() -> None:
    pairs = chosen(matrix(N, 20.0), 7)
    memory = empty(4, pairs[0].s)
    assert learn(memory, pairs) == 4
    assert float((as_matrix(memory) - bfgs(pairs[-4:])).norm()) < 1e-10


@pytest.mark.parametrize("each", [1, 2, 3, 7])
def test_running_pairs_stay_while_there_is_room(each: int) -> None:
    pairs = chosen(matrix(N, 20.0), 21)
    memory = empty(5, pairs[0].s)
    for k in range(0, 21, each):
        learn(memory, pairs[k : k + each], running=True)
        H = bfgs(pairs[: k + each][-5:])
        assert float((as_matrix(memory) - H).norm() / H.norm()) < 1e-9
        kept = as_matrix(memory)
        assert learn(memory, [at_cosine(-0.5)], running=True) == 0
        assert torch.equal(as_matrix(memory), kept)


@pytest.mark.parametrize("rows", [2, 4, 6])
def test_of_steps_the_last_are_held_and_one_row_is_free(rows: int) -> None:
    pairs = chosen(matrix(N, 20.0), 15)
    memory = empty(rows, pairs[0].s)
    for k, pair in enumerate(pairs):
        assert stepped(memory, pair)
        assert memory.count == min(k + 1, rows - 1)
        H = bfgs(pairs[max(0, k + 2 - rows) : k + 1])
        assert float((as_matrix(memory) - H).norm() / H.norm()) < 1e-9


def test_a_step_that_is_still_waiting_changes_nothing() -> None:
    pairs = chosen(matrix(N, 20.0), 9)
    memory = empty(4, pairs[0].s)
    for pair in pairs:
        stepped(memory, pair)
        H = as_matrix(memory)
        begin(memory, vector(normal(N, seed=5)), 0.3, vector(normal(N, seed=6)))
        assert torch.equal(as_matrix(memory), H)
        memory.waiting = False


def test_inner_products_are_those_of_the_rows() -> None:
    pairs = chosen(matrix(N, 20.0), 9)
    memory = empty(4, pairs[0].s)
    for pair in pairs:
        stepped(memory, pair)
    rows = torch.tensor(memory.order)
    S, Y = memory.rows[:, rows]
    for gram, expected in zip(memory.gram, (S @ S.mT, S @ Y.mT), strict=True):
        assert_close(gram[rows[:, None], rows], expected, dimension=N)
    assert_close(memory.yy[rows], Y.square().sum(1), dimension=N)
    assert_close(S.norm(dim=1), torch.ones(3, dtype=DTYPE))


def test_forgetting_says_how_much_and_begins_anew() -> None:
    pairs = chosen(matrix(N, 20.0), 5)
    memory = empty(3, pairs[0].s)
    for pair in pairs:
        stepped(memory, pair)
    assert forget(memory) == 2
    assert forget(memory) == 0
    assert stepped(memory, pairs[3])
    assert float((as_matrix(memory) - bfgs(pairs[3:4])).norm()) < 1e-10


def test_vectors_given_are_not_kept() -> None:
    """Their buffers are used again by the next step."""
    pairs = chosen(matrix(N, 20.0), 3)
    memory = empty(3, pairs[0].s)
    learn(memory, pairs)
    H = as_matrix(memory)
    given: list[BlockVector] = [v for p in pairs for v in (p.s, p.y)]
    for v in given:
        v.flat.fill_(torch.nan)
    assert torch.equal(as_matrix(memory), H)
