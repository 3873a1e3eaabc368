"""The suite of Krylov solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.cg import Stop
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.secants import Pairs, Which
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.evidence import Solve
from curvlab.protocols.krylov import Krylov
from curvlab.testing.asserts import assert_same
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.exercised import Exercised, Found
from curvlab.testing.problems import normal

#: a system that any solver is done with soon
EASY = BlockLayout({"a": (2, 3), "b": (4,)})
#: one that takes more iterations than solvers are given
HARD = BlockLayout({"a": (20, 12), "b": (60,)})


@dataclass
class Counted(LinearOperator[BlockVector]):
    """A dense matrix that says that it is PSD, and counts the products made with it."""

    matrix: Float[Tensor, "D D"]
    count: int = 0

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        return BlockVector(v.layout, self.matrix.to(v.dtype) @ v.flat)


def system(layout: BlockLayout, condition: float = 10.0, seed: int = 0) -> tuple[Counted, BlockVector]:
    """An SPD operator, its eigenvalues spread evenly in their logarithms, and a right-hand side."""
    Q: Tensor = torch.linalg.qr(normal(layout.size, layout.size, seed=seed)).Q
    values = torch.logspace(0, -1, layout.size, base=condition, dtype=torch.float64)
    return Counted((Q * values) @ Q.mT), vector(layout, seed + 1)


def vector(layout: BlockLayout, seed: int) -> BlockVector:
    """A vector of normal numbers."""
    return BlockVector(layout, normal(layout.size, seed=seed))


class KrylovConformance(Exercised):
    """A solver against the solution: on systems that it can solve, cannot solve, and must not solve."""

    kind = "krylov"
    part: Krylov

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def exercise(self) -> Found:
        A, b = system(EASY)
        pairs = Pairs(2)
        solve = self.part.solve(A, b, x0=vector(EASY, 5), M=_jacobi(A), pairs=pairs)
        return {
            "x": solve.x,
            "iterations": solve.iterations,
            **{f"s{k}": p.s for k, p in enumerate(solve.secants)},
        }

    def residual(self, A: Counted, b: BlockVector, solve: Solve) -> float:
        """‖b − A x‖ / ‖b‖."""
        x = BlockVector(b.layout, solve.x.flat)
        return float((b - A @ x).norm() / b.norm())

    def require_room(self) -> None:
        """Skip what supposes that the solver may make as many iterations as there are unknowns."""
        if self.part.limit < EASY.size:
            raise Skipped(f"its limit is {self.part.limit} products, and this check needs {EASY.size}")

    @check()
    def check_obligations(self) -> None:
        """``limit`` counts products, ``iterates`` is a bool, and a Solve says how it ended."""
        limit, keeps = self.part.limit, self.part.iterates
        assert isinstance(limit, int) and limit > 0, f"{self.name}.limit must be an int > 0, not {limit!r}"  # noqa: PT018
        assert isinstance(keeps, bool), f"{self.name}.iterates must be a bool, not {keeps!r}"
        A, b = system(EASY)
        solve = self.part.solve(A, b)
        assert isinstance(solve, Solve), (
            f"{self.name}.solve must return a Solve, not a {type(solve).__name__}"
        )
        assert isinstance(solve.reason, Stop), (
            f"{self.name}: Solve.reason must be a Stop, not {solve.reason!r}"
        )
        assert solve.reason is not Stop.DIRECT, f"{self.name}: Stop.DIRECT is for a solve without iterations"
        assert solve.x.layout == b.layout, f"{self.name}.solve: the blocks of x differ from those of b"
        assert isinstance(solve.iterations, int), f"{self.name}: Solve.iterations must be an int"

    @check()
    def check_solves(self) -> None:
        """A well-conditioned system of few unknowns is solved to within 2 %."""
        self.require_room()
        for seed in range(3):
            A, b = system(EASY, seed=seed)
            solve = self.part.solve(A, b)
            left = self.residual(A, b, solve)
            assert left <= 0.02, f"{self.name}: ‖b − A x‖ = {left:.3g} ‖b‖ at the end ({solve.reason})"

    @check()
    def check_limit(self) -> None:
        """No solve makes more products than ``limit``, from a start and with pairs too."""
        for x0, pairs in ((None, None), (vector(HARD, 5), Pairs(3))):
            A, b = system(HARD, condition=1e8)
            self.part.solve(A, b, x0=x0, pairs=pairs)
            assert A.count <= self.part.limit, (
                f"{self.name}: solve makes {A.count} products, the limit is {self.part.limit}"
            )

    @check()
    def check_descends(self) -> None:
        """Whatever its end, the model ½ xᵀAx − bᵀx is below that of zero."""
        A, b = system(HARD, condition=1e8)
        x = self.part.solve(A, b).x
        model = 0.5 * float(x.dot(A @ x)) - float(b.dot(x))
        assert model < 0, (
            f"{self.name}: the model at the solution is {model:.4g}, expected less than its value 0 at zero"
        )

    @check()
    def check_start(self) -> None:
        """A start is used: from the solution there is nothing left to do."""
        A, b = system(EASY)
        x0 = BlockVector(EASY, torch.linalg.solve(A.matrix, b.flat))
        left = self.residual(A, b, self.part.solve(A, b, x0=x0))
        assert left <= 1e-6, f"{self.name}: from the solution, ‖b − A x‖ = {left:.3g} ‖b‖ at the end"

    @check()
    def check_arguments(self) -> None:
        """Right-hand side, start and operator's images stay as they were."""
        A, b = system(EASY)
        x0 = vector(EASY, 5)
        kept, start, matrix = b.clone(), x0.clone(), A.matrix.clone()
        x = self.part.solve(A, b, x0=x0, M=_jacobi(A), pairs=Pairs(2)).x
        x.flat.fill_(7.0)
        assert torch.equal(b.flat, kept.flat), f"{self.name}.solve changes b, or returns its memory"
        assert torch.equal(x0.flat, start.flat), f"{self.name}.solve changes x0, or returns its memory"
        assert torch.equal(A.matrix, matrix), f"{self.name}.solve changes A"

    @check()
    def check_preconditioner(self) -> None:
        """``M`` is used: with the inverse of A, the first iterations solve."""
        A, b = system(HARD, condition=1e4)
        inverse, calls = torch.linalg.inv(A.matrix), [0]

        def M(r: BlockVector) -> BlockVector:
            calls[0] += 1
            return BlockVector(r.layout, inverse @ r.flat)

        solve = self.part.solve(A, b, M=M)
        left = self.residual(A, b, solve)
        assert calls[0] > 0, f"{self.name}.solve never calls M"
        assert left <= 1e-3, f"{self.name}: with M = A⁻¹, ‖b − A x‖ = {left:.3g} ‖b‖ at the end"

    @check(capability="varying")
    def check_varying(self) -> None:
        """A preconditioner may change during a solve, as ``varying = True`` says."""
        self.require_room()
        for seed in range(3):
            A, b = system(EASY, seed=seed)
            calls = [0]

            def M(r: BlockVector, calls: list[int] = calls) -> BlockVector:
                calls[0] += 1
                scale = torch.exp(2.0 * normal(EASY.size, seed=70 + calls[0] % 4))
                return BlockVector(r.layout, r.flat * scale)

            left = self.residual(A, b, self.part.solve(A, b, M=M))
            assert left <= 0.1, f"{self.name}: with an M that varies, ‖b − A x‖ = {left:.3g} ‖b‖ at the end"

    @check()
    def check_negative_curvature(self) -> None:
        """An operator that is not positive definite after all ends with a finite solution."""
        for sign in (-1.0, 1.0):
            A, b = system(EASY)
            A.matrix = A.matrix - (0.3 if sign > 0 else 20.0) * torch.eye(EASY.size).double()
            solve = self.part.solve(A, b)
            assert solve.x.is_finite(), f"{self.name}: negative curvature ends with an x that is not finite"

    @check()
    def check_nonfinite(self) -> None:
        """NaNs, in the operator or in b, end with a finite solution and are not called convergence."""
        A, b = system(EASY)
        broken = Counted(A.matrix.clone().fill_(torch.nan))
        cases = {"A": (broken, b), "b": (A, b * torch.nan)}
        for what, (operator, side) in cases.items():
            solve = self.part.solve(operator, side)
            assert solve.x.is_finite(), f"{self.name}: NaNs in {what} end with an x that is not finite"
            assert solve.reason is not Stop.CONVERGED, (
                f"{self.name}: NaNs in {what} end with the reason {solve.reason}"
            )

    @check()
    def check_zero(self) -> None:
        """``A x = 0`` is solved by zero."""
        A, b = system(EASY)
        x = self.part.solve(A, b.zeros_like()).x
        assert float(x.norm()) == 0.0, f"{self.name}: the solution of A x = 0 has norm {float(x.norm()):.3g}"

    @check(capability="iterates")
    def check_iterates(self) -> None:
        """Iterates run from early to late and end with the solution itself; bends are xᵀAx."""
        A, b = system(HARD, condition=1e4)
        solve = self.part.solve(A, b)
        numbers = [i.iteration for i in solve.iterates]
        assert numbers, f"{self.name}.iterates is True, and the Solve has no iterates"
        assert numbers == sorted(set(numbers)), f"{self.name}: iterates {numbers} are not in ascending order"
        assert solve.iterates[-1].x is solve.x, f"{self.name}: the last iterate is not the solution itself"
        for i in solve.iterates:
            bend = float(i.x.dot(A @ i.x))
            near = math.isclose(i.curvature, bend, rel_tol=1e-5)  # by recurrences, which drift
            assert near, (
                f"{self.name}: the curvature of iterate {i.iteration} is {i.curvature:.9g},"
                f" expected xᵀAx = {bend:.9g}"
            )

    @check()
    def check_pairs(self) -> None:
        """Pairs that are asked for are (s, A s), no more of them than asked; none if none are."""
        A, b = system(HARD, condition=1e4)
        assert self.part.solve(A, b).secants == (), (
            f"{self.name}: solve returns pairs though none were requested"
        )
        for which in Which:
            count = 0 if which is Which.ALL else 3
            secants = self.part.solve(A, b, pairs=Pairs(count, which)).secants
            assert secants, f"{self.name}: solve returns no pairs for Pairs({count}, {which})"
            assert which is Which.ALL or len(secants) <= count, (
                f"{self.name}: solve returns {len(secants)} pairs, at most {count} were requested"
            )
            for pair in secants:
                assert float(pair.s.norm()) > 0, f"{self.name}: a pair is zero"
                what = f"{self.name}: y of a pair ({which}) against A s"
                assert_same(pair.y, A @ pair.s, condition=1e4, what=what)

    @check()
    def check_float32(self) -> None:
        """In float32 the solution is float32."""
        A, b = system(EASY)
        x = self.part.solve(A, b.to(torch.float32)).x
        assert x.dtype is torch.float32, f"{self.name}.solve of float32 gives {x.dtype}"
        assert x.is_finite(), f"{self.name}.solve in float32 is not finite"

    def capabilities(self) -> frozenset[str]:
        can = {"varying": self.part.varying, "iterates": self.part.iterates}
        return frozenset(name for name, able in can.items() if able)


def _jacobi(A: Counted) -> Callable[[BlockVector], BlockVector]:
    scale = 1 / A.matrix.diagonal()
    return lambda r: BlockVector(r.layout, r.flat * scale)
