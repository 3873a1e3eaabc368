"""Krylov solvers: oracles 1, 3 and 9 of the specification, and what every solver must keep to."""

from __future__ import annotations

import itertools

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError
from curvlab.linalg.cg import Stop, conjugate_gradients
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.progress import Stopping, grid
from curvlab.linalg.secants import Pairs, Which
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.parts.krylov import ConjugateGradients
from curvlab.protocols.krylov import Krylov
from curvlab_hessianfree.flexible_cg import FlexibleCG
from curvlab_hessianfree.krylov_basis import KrylovBasis
from curvlab_hessianfree.minres import MinRes


class Matrix(LinearOperator[BlockVector]):
    """A symmetric matrix that counts its products."""

    self_adjoint = True
    psd = True

    def __init__(self, entries: Tensor) -> None:
        self.entries, self.count = entries, 0

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        return BlockVector(v.layout, self.entries @ v.flat)


def spd(n: int, condition: float, seed: int = 0) -> Float[Tensor, "n n"]:
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return Q * torch.logspace(0, torch.tensor(condition).log10().item(), n, dtype=torch.float64) @ Q.mT


def vector(n: int, seed: int = 1) -> BlockVector:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(n, generator=generator, dtype=torch.float64)
    return BlockVector(BlockLayout({"a": (n - 2,), "b": (2, 1)}), flat)


def model(A: Tensor, b: BlockVector, x: BlockVector) -> float:
    return float(0.5 * x.flat @ A @ x.flat - b.flat @ x.flat)


TIGHT: list[Krylov] = [
    ConjugateGradients(100, tolerance=1e-12, grid=1.3),
    FlexibleCG(100, progress=0, tolerance=1e-12),
    FlexibleCG(100, progress=0, tolerance=1e-12, directions=4),
    MinRes(100, progress=0, tolerance=1e-12),
]
NAMES = ["cg", "flexible", "flexible-4", "minres"]


@pytest.mark.parametrize("solver", TIGHT, ids=NAMES)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_as_many_iterations_as_unknowns_solve_the_system(solver: Krylov, preconditioned: bool) -> None:
    A, b = spd(12, 5.0), vector(12)
    D = Matrix(torch.diag(A.diagonal().reciprocal()))
    found = solver.solve(Matrix(A), b, M=D.__matmul__ if preconditioned else None)
    assert found.iterations <= 12
    assert found.reason is Stop.CONVERGED
    assert float((A @ found.x.flat - b.flat).norm()) <= 1e-11 * float(b.norm())


@pytest.mark.parametrize("solver", TIGHT, ids=NAMES)
def test_bends_and_models_of_the_iterates_are_those_of_the_definition(solver: Krylov) -> None:
    A, b = spd(20, 100.0), vector(20)
    found = solver.solve(Matrix(A), b, M=Matrix(torch.diag(A.diagonal().reciprocal())).__matmul__)
    assert found.iterates[-1].x is found.x
    assert len(found.iterates) > 5
    models = [model(A, b, i.x) for i in found.iterates]
    for iterate in found.iterates:
        assert iterate.curvature == pytest.approx(float(iterate.x.flat @ A @ iterate.x.flat), rel=1e-9)
    assert all(later < earlier for earlier, later in itertools.pairwise(models[:-1]))


@pytest.mark.parametrize("solver", TIGHT, ids=NAMES)
def test_a_start_costs_one_product_and_is_gone_on_from(solver: Krylov) -> None:
    A, b = spd(12, 50.0), vector(12)
    near = BlockVector(b.layout, torch.linalg.solve(A, b.flat) + 1e-6)
    before, operator = near.flat.clone(), Matrix(A)
    found = solver.solve(operator, b, x0=near)
    assert torch.equal(near.flat, before), "the start is not changed"
    assert operator.count <= solver.limit
    torch.testing.assert_close(found.x.flat, torch.linalg.solve(A, b.flat))


def test_flexible_cg_drops_a_start_that_is_worse_than_none() -> None:
    A, b = spd(12, 50.0), vector(12)
    bad = BlockVector(b.layout, -torch.linalg.solve(A, b.flat))
    assert model(A, b, bad) > 0
    solver = FlexibleCG(5, progress=0)
    assert torch.equal(solver.solve(Matrix(A), b, x0=bad).x.flat, solver.solve(Matrix(A), b).x.flat)


@pytest.mark.parametrize("directions", [1, 3])
def test_with_a_fixed_preconditioner_flexible_cg_is_cg(directions: int) -> None:
    A, b = spd(30, 200.0), vector(30)
    M = Matrix(spd(30, 9.0, seed=5)).__matmul__
    for k in (1, 2, 5, 12):
        plain = conjugate_gradients(Matrix(A), b, M=M, max_iterations=k, tolerance=0.0)
        flexible = FlexibleCG(k, progress=0, directions=directions).solve(Matrix(A), b, M=M)
        torch.testing.assert_close(flexible.x.flat, plain.x.flat, rtol=1e-8, atol=1e-10)


def changing(n: int) -> Matrix:
    """A preconditioner that is another diagonal in every application, positive always."""

    class Changing(Matrix):
        def __matmul__(self, v: BlockVector) -> BlockVector:
            self.count += 1
            generator = torch.Generator().manual_seed(self.count)
            scale = 10.0 ** torch.empty(n, dtype=torch.float64).uniform_(-0.5, 0.5, generator=generator)
            return BlockVector(v.layout, scale * v.flat)

    return Changing(torch.eye(n))


def test_where_the_preconditioner_changes_only_the_flexible_form_converges() -> None:
    """The Fletcher–Reeves β of plain CG assumes one M; the Polak–Ribière form does not (oracle 3)."""
    A, b = spd(60, 300.0), vector(60)
    limit = 800
    plain = conjugate_gradients(Matrix(A), b, M=changing(60).__matmul__, max_iterations=limit, tolerance=1e-8)
    assert plain.reason is Stop.LIMIT
    assert plain.residual > 1e-2 * float(b.norm())
    for directions in (1, 5):
        solver = FlexibleCG(limit, progress=0, tolerance=1e-8, directions=directions)
        found = solver.solve(Matrix(A), b, M=changing(60).__matmul__)
        assert found.reason is Stop.CONVERGED
        assert found.iterations < limit


def test_more_directions_need_fewer_iterations_where_the_preconditioner_changes() -> None:
    A, b = spd(60, 300.0), vector(60)
    counts = [
        FlexibleCG(800, progress=0, tolerance=1e-8, directions=m)
        .solve(Matrix(A), b, M=changing(60).__matmul__)
        .iterations
        for m in (1, 20)
    ]
    assert counts[1] < counts[0]


def test_the_grid_is_that_of_the_literature() -> None:
    expected = [1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24, 31, 40, 52, 67, 87, 113, 147, 191, 248]
    assert sorted(grid(1.3, 250)) == expected
    A, b = spd(80, 1e4), vector(80)
    found = FlexibleCG(45, progress=0, kept=100).solve(Matrix(A), b)
    assert [i.iteration for i in found.iterates] == [1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24, 31, 40, 45]
    few = FlexibleCG(45, progress=0, kept=3).solve(Matrix(A), b)
    assert [i.iteration for i in few.iterates] == [24, 31, 40, 45]
    assert FlexibleCG(45, grid=0).solve(Matrix(A), b).iterates == ()


def test_relative_progress_is_counted_from_the_start_of_the_solve() -> None:
    rule = Stopping(250, progress=0.1, window=2)
    assert not rule.idle([0.0, -1.0])  # too early
    assert not rule.idle([0.0, -1.0, -2.0, -4.0])  # gained 3 of 4
    assert rule.idle([0.0, -3.8, -4.0, -4.1, -4.2])  # gained 0.2 of 4.2, less than 2 · 0.1
    assert rule.idle([-100.0 + m for m in (0.0, -3.8, -4.0, -4.1, -4.2)])  # the same after a warm start
    assert not Stopping(250, progress=0.0, window=2).idle([0.0, -4.0, -4.0, -4.0, -4.0])


def test_relative_progress_ends_a_solve_early_and_the_model_is_nearly_at_its_least() -> None:
    A, b = spd(200, 1e4), vector(200)
    found = FlexibleCG(250).solve(Matrix(A), b)
    least = model(A, b, BlockVector(b.layout, torch.linalg.solve(A, b.flat)))
    assert found.reason is Stop.CONVERGED
    assert 10 < found.iterations < 200
    assert model(A, b, found.x) < 0.95 * least


def test_the_pairs_of_a_full_solve_are_products_and_conjugate() -> None:
    A, b = spd(12, 20.0), vector(12)
    for solver in (*TIGHT[:3], KrylovBasis(12)):
        found = solver.solve(Matrix(A), b, pairs=Pairs(5, Which.FIRST))
        assert len(found.secants) == 5
        for pair in found.secants:
            torch.testing.assert_close(pair.y.flat, A @ pair.s.flat)
    found = FlexibleCG(12, progress=0).solve(Matrix(A), b, pairs=Pairs(0, Which.ALL))
    S = torch.stack([p.s.flat for p in found.secants])
    C = S @ A @ S.mT
    assert float((C - torch.diag(C.diagonal())).abs().max()) < 1e-8 * float(C.diagonal().max())


@pytest.mark.parametrize(
    ("which", "kept"),
    [
        (Which.LAST, [6, 7, 8, 9]),
        (Which.FIRST, [0, 1, 2, 3]),
        (Which.EVEN, [0, 4, 8]),
        (Which.ALL, list(range(10))),
    ],
)
def test_which_pairs_are_kept(which: Which, kept: list[int]) -> None:
    A, b = spd(40, 1e3), vector(40)
    everything = FlexibleCG(10, progress=0).solve(Matrix(A), b, pairs=Pairs(0, Which.ALL)).secants
    some = FlexibleCG(10, progress=0).solve(Matrix(A), b, pairs=Pairs(4, which)).secants
    assert len(some) == len(kept)
    for pair, k in zip(some, kept, strict=True):
        assert torch.equal(pair.s.flat, everything[k].s.flat)
        assert torch.equal(pair.y.flat, everything[k].y.flat)


@pytest.mark.parametrize("solver", TIGHT, ids=NAMES)
def test_negative_curvature_ends_a_solve_with_the_iterate_before_it(solver: Krylov) -> None:
    A, b = torch.diag(torch.tensor([3.0, 2.0, 1.0, -1.0], dtype=torch.float64)), vector(4)
    found = solver.solve(Matrix(A), b)
    assert found.reason is Stop.CURVATURE
    assert found.x.is_finite()
    flat = solver.solve(Matrix(-torch.eye(4, dtype=torch.float64)), b)
    assert flat.iterations == 0
    assert float(flat.x.norm()) == 0


@pytest.mark.parametrize("solver", [*TIGHT, KrylovBasis(5)], ids=[*NAMES, "basis"])
def test_what_is_not_finite_never_reaches_the_solution(solver: Krylov) -> None:
    A, b = spd(8, 10.0), vector(8)

    class Breaking(Matrix):
        def __matmul__(self, v: BlockVector) -> BlockVector:
            out = super().__matmul__(v)
            return out if self.count < 4 else out * float("nan")

    for operator, right in ((Breaking(A), b), (Matrix(A), b * float("nan"))):
        found = solver.solve(operator, right)
        assert found.reason is Stop.NONFINITE
        assert found.x.is_finite()


@pytest.mark.parametrize("solver", [*TIGHT, KrylovBasis(5)], ids=[*NAMES, "basis"])
def test_nothing_is_the_solution_for_nothing(solver: Krylov) -> None:
    A, b = spd(8, 10.0), vector(8) * 0.0
    found = solver.solve(Matrix(A), b)
    assert found.reason is Stop.CONVERGED
    assert float(found.x.norm()) == 0


def test_a_preconditioner_that_is_not_positive_is_left_out_from_there_on() -> None:
    A, b = spd(12, 20.0), vector(12)
    solver = FlexibleCG(12, progress=0)
    found = solver.solve(Matrix(A), b, M=lambda r: r * -1.0)
    assert torch.equal(found.x.flat, solver.solve(Matrix(A), b).x.flat)


def test_minres_has_the_least_residual_and_cg_the_least_model() -> None:
    A, b = spd(40, 1e3), vector(40)
    for k in (2, 5, 11):
        cg = FlexibleCG(k, progress=0).solve(Matrix(A), b).x
        residual = MinRes(k, progress=0).solve(Matrix(A), b).x
        K = torch.stack([torch.linalg.matrix_power(A, j) @ b.flat for j in range(k)], dim=1)
        Q, _ = torch.linalg.qr(K)
        best = torch.linalg.lstsq(A @ Q, b.flat).solution
        torch.testing.assert_close(residual.flat, Q @ best, rtol=1e-5, atol=1e-8)
        assert float((b.flat - A @ residual.flat).norm()) <= float((b.flat - A @ cg.flat).norm())
        assert model(A, b, cg) <= model(A, b, residual)
        assert float(residual.norm()) <= float(cg.norm()), "shorter steps (Fong and Saunders 2012)"


def test_a_krylov_basis_holds_the_minimizer_that_cg_finds() -> None:
    A, b = spd(40, 100.0), vector(40)
    for k in (1, 4, 9):
        cg = FlexibleCG(k, progress=0).solve(Matrix(A), b)
        basis = KrylovBasis(k, floor=1e-9).solve(Matrix(A), b)
        torch.testing.assert_close(basis.x.flat, cg.x.flat, rtol=1e-7, atol=1e-9)
        U = torch.stack([i.x.flat for i in basis.iterates])
        U[1:] -= U[:-1].clone()
        C = U @ A @ U.mT
        assert float((C - torch.diag(C.diagonal())).abs().max()) < 1e-8 * float(C.diagonal().max())
        for iterate in basis.iterates:
            assert iterate.curvature == pytest.approx(float(iterate.x.flat @ A @ iterate.x.flat), rel=1e-8)


def test_a_krylov_basis_takes_the_start_in_and_breaks_off_where_the_space_ends() -> None:
    A, b = spd(12, 20.0), vector(12)
    start = vector(12, seed=7)
    found = KrylovBasis(3).solve(Matrix(A), b, x0=start)
    assert found.iterations == 4
    space = torch.stack([i.x.flat for i in found.iterates])
    assert float(torch.linalg.lstsq(space.mT, start.flat).residuals.sum()) < 1e-18
    three = torch.diag(torch.tensor([1.0] * 4 + [2.0] * 4 + [3.0] * 4, dtype=torch.float64))
    whole = KrylovBasis(9).solve(Matrix(three), b)
    assert whole.iterations == 3
    assert whole.reason is Stop.CONVERGED
    torch.testing.assert_close(whole.x.flat, torch.linalg.solve(three, b.flat))


def space(A: Tensor, b: Tensor) -> Float[Tensor, "d k"]:
    """The space of a solve in float32, as orthonormal columns."""
    right = BlockVector(BlockLayout({"a": (len(b),)}), b.float())
    found = KrylovBasis(20).solve(Matrix(A.float()), right)
    steps = torch.stack([i.x.flat.double() for i in found.iterates], dim=1)
    steps[:, 1:] -= steps[:, :-1].clone()
    return torch.linalg.qr(steps / steps.norm(dim=0)).Q


@pytest.mark.parametrize("width", [0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0])
def test_rounding_chooses_no_direction_of_a_krylov_basis(width: float) -> None:
    """A and 3 A have the same space.

    The eigenvalues lie in four clusters: what is left of the fifth power is as small as they are narrow.
    """
    n = 40
    rotation, _ = torch.linalg.qr(torch.stack([vector(n, k).flat for k in range(n)]))
    centers = torch.logspace(-2, 0, 4, dtype=torch.float64).repeat(n // 4)
    A = rotation * (centers + width * vector(n, n).flat.sigmoid()) @ rotation.mT
    one, other = space(A, vector(n).flat), space(3 * A, vector(n).flat)
    assert one.shape == other.shape
    assert one.shape[1] >= 4
    tilt = float(torch.linalg.matrix_norm(other - one @ (one.mT @ other), 2))
    assert tilt <= 20 * torch.finfo(torch.float32).eps ** 0.5  # a direction keeps √ε of itself, rounded by ε


@pytest.mark.parametrize("make", [FlexibleCG, MinRes])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_iterations", 0),
        ("progress", -1.0),
        ("window", 0),
        ("tolerance", 1.0),
        ("grid", 1.0),
        ("kept", -1),
    ],
)
def test_settings_out_of_range_are_named(make: type, setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=setting):
        make(**{setting: value})
