"""H₀ as another preconditioner: what H is then, and which blocks it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from curvlab.errors import ConfigError
from curvlab.linalg.secants import Secant
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Solve, Step
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab_lbfgs.inverse import around, in_two_sweeps, weights
from curvlab_lbfgs.lbfgs import Lbfgs, Source
from plugins.lbfgs.tests.dense import chosen, held, matrix, vector
from plugins.lbfgs.tests.test_lbfgs import LIKE, after, context, seen

N = 12
A = matrix(N, 50.0)
H0 = matrix(N, 20.0, seed=3)


@dataclass(frozen=True)
class Fixed(Preconditioner[list[Tensor]]):
    """A matrix on the blocks that are not refused, twice as much after a refresh."""

    M: Tensor
    no: str = ""

    def refuses(self, block: Block) -> str | None:
        return "not mine" if block.name == self.no else None

    def init(self, like: BlockVector, ctx: Context) -> list[Tensor]:
        assert like.layout.size == len(self.M)
        return [self.M.clone()]

    def refresh(self, state: list[Tensor], ctx: Context) -> None:
        state[0].copy_(2 * self.M)

    def apply(self, state: list[Tensor], v: BlockVector, ctx: Context) -> Solve:
        return Solve(BlockVector(v.layout, state[0] @ v.flat))


def recursion(pairs: Sequence[Secant], H: Tensor) -> Tensor:
    """H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ, pair by pair."""
    unit = torch.eye(len(H), dtype=H.dtype)
    for pair in pairs:
        s, y = pair.s.flat, pair.y.flat
        left = unit - torch.outer(s, y) / (s @ y)
        H = left @ H @ left.mT + torch.outer(s, s) / (s @ y)
    return H


def inside(part: Lbfgs, pairs: Sequence[Secant], damping: float, blocks: Sequence[Block]) -> Tensor:
    """What the part is, column by column, once it has learned these pairs."""
    part = part.settled(blocks)
    state = part.init(LIKE, context())
    part.learn(state, after(Step(LIKE, 1.0), LIKE, tuple(pairs)), context())
    part.observe(state, seen(LIKE), context(1, damping))
    part.refresh(state, context(1, damping))
    ctx = context(1, damping)
    return torch.stack([part.apply(state, vector(e), ctx).x.flat for e in torch.eye(N, dtype=DTYPE)], 1)


BLOCKS = [Block("w", ("w",), torch.Size([N - 2])), Block("b", ("b",), torch.Size([2]))]


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("m", [1, 5])
def test_around_another_matrix_it_is_the_recursion_from_that(m: int, damping: float) -> None:
    pairs = chosen(A, m)
    w = weights(memory := held(pairs), damping)
    assert w is not None
    expected = recursion([p.shifted(damping) for p in pairs], H0)
    for e in torch.eye(N, dtype=DTYPE):
        got = around(memory, w, vector(e), lambda q: BlockVector(q.layout, H0 @ q.flat))
        assert_close(got.flat, expected @ e, condition=1e6)


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_around_a_multiple_of_the_identity_it_is_what_two_sweeps_are(damping: float) -> None:
    w = weights(memory := held(chosen(A, 4)), damping)
    assert w is not None
    v = vector(normal(N, seed=4))
    assert_close(
        around(memory, w, v, lambda q: q * w.gamma).flat, in_two_sweeps(memory, w, v).flat, condition=1e4
    )


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_the_part_refreshes_its_initial_and_goes_on_from_there(damping: float) -> None:
    pairs = chosen(A, 3)
    part = Lbfgs(memory=3, source=Source.SOLVE, initial=Fixed(H0))
    expected = recursion([p.shifted(damping) for p in pairs], 2 * H0)
    assert_close(inside(part, pairs, damping, BLOCKS), expected, condition=1e6)


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_a_block_that_the_initial_refuses_has_the_scale_of_its_part_of_the_newest_pair(
    damping: float,
) -> None:
    pairs = chosen(torch.block_diag(A[: N - 2, : N - 2], 3.0 * torch.eye(2, dtype=DTYPE)), 3)
    part = Lbfgs(memory=3, source=Source.SOLVE, initial=Fixed(H0[: N - 2, : N - 2], no="b"))
    unit = torch.eye(2, dtype=DTYPE) / (3.0 + damping)  # where C is 3 I, every pair says so
    first = torch.block_diag(2 * H0[: N - 2, : N - 2], unit)
    expected = recursion([p.shifted(damping) for p in pairs], first)
    assert_close(inside(part, pairs, damping, BLOCKS), expected, condition=1e6)


@pytest.mark.parametrize(("damping", "gamma"), [(0.0, 1.0), (4.0, 0.25)])
def test_without_a_pair_what_the_initial_refuses_is_taken_for_flat(damping: float, gamma: float) -> None:
    part = Lbfgs(memory=3, source=Source.SOLVE, initial=Fixed(H0[: N - 2, : N - 2], no="b"))
    first = torch.block_diag(2 * H0[: N - 2, : N - 2], gamma * torch.eye(2, dtype=DTYPE))
    assert_close(inside(part, (), damping, BLOCKS), first, condition=1e3)


def test_an_initial_that_refuses_everything_is_no_initial() -> None:
    @dataclass(frozen=True)
    class Nothing(Fixed):
        def refuses(self, block: Block) -> str | None:
            return "never"

    part = Lbfgs(memory=3, source=Source.SOLVE, initial=Nothing(H0))
    assert_close(inside(part, (), 0.5, BLOCKS), 2 * torch.eye(N, dtype=DTYPE), condition=1.0)


def test_an_initial_that_changes_in_a_solve_or_learns_from_it_is_refused() -> None:
    for initial in (
        Iterative(GaussNewton(), ConjugateGradients(5, 1e-3)),
        Lbfgs(memory=2, source=Source.SOLVE),
    ):
        with pytest.raises(ConfigError, match=f"{type(initial).__name__} is not") as error:
            Lbfgs(initial=initial)
        assert error.value.faults[0].path == "initial"


@pytest.mark.parametrize("source", Source)
def test_the_initial_learns_from_steps_too(source: Source) -> None:
    part = Lbfgs(memory=3, source=source, initial=Lbfgs(memory=2)).settled(BLOCKS)
    state = part.init(LIKE, context())
    g, step = vector(normal(N, seed=1)), vector(normal(N, seed=2))
    arrived = vector(g.flat - 0.1 * A @ step.flat)
    part.observe(state, seen(g), context())
    part.learn(state, after(Step(step, 0.1, gradient=arrived), g), context())
    assert state.initial is not None
    assert state.initial.part.memory.count == 1
