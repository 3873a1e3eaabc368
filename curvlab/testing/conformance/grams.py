"""What every structure family owes that holds Gram matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.protocols.structure import Gram, Structure
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.family import FamilyChecks
from curvlab.testing.members import gram, size
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack


class GramChecks(FamilyChecks):
    """Averages, inverses, eigenvectors."""

    @property
    def gram(self) -> Gram:
        """The family as what it is here."""
        assert isinstance(self.part, Gram)
        return self.part

    @check(capability="Gram")
    def check_average(self) -> None:
        """``average_`` is keep · M + Π(weight · XᵀX); where Π is not continuous, as near and of its trace."""
        for d in self.dimensions:
            for n, keep in ((1, 0.0), (2, 0.5), (40, 0.95)):
                M, X = gram(self.part, d, d), normal(n, d, seed=d + 1)
                G = 0.3 * X.mT @ X
                dense = keep * M.dense() + G
                near = self.part.project(dense).dense()
                expected = keep * M.dense() + self.part.project(G).dense() if M.family.linear else near
                self.gram.average_(M, keep, X, 0.3, Lapack())
                found, what = M.dense(), f"{type(self.part).__name__}.average_ of {n} rows at d = {d}"
                if M.family.linear:
                    assert_close(found, expected, dimension=n + d, scale=size(expected), what=what)
                    continue
                far = (found - dense).norm(), (near - dense).norm()
                assert_close(*far, dimension=d**2, scale=size(dense), what=f"{what}: how far from dense")
                assert_close(found.trace(), dense.trace(), dimension=n * d, what=f"{what}: its trace")

    @check(capability="Gram")
    def check_positive(self) -> None:
        """Averages of fewer rows than columns are symmetric and positive semi-definite."""
        for d in self.dimensions:
            M = gram(self.part, d, d, rows=1).dense()
            assert_close(M, M.mT, dimension=d, scale=size(M), what="an average against its transpose")
            least = float(torch.linalg.eigvalsh(M)[0])
            assert least >= -1e-13 * size(M) * d, (
                f"{type(self.part).__name__}.average_ leaves an eigenvalue {least:.3g}"
            )

    @check(capability="Gram")
    def check_inverse(self) -> None:
        """``inverse`` is that of the damped dense matrix, for a shift that is a number or a tensor."""
        for d in self.dimensions:
            for shift in (1e-3, 10.0, torch.tensor(0.1, dtype=torch.float64)):
                M, X = gram(self.part, d, d), normal(d, 3, seed=d + 9)
                damped = M.dense() + shift * torch.eye(d).double()
                inverse = self.gram.inverse(M, shift, Lapack())
                condition, expected = float(torch.linalg.cond(damped)), torch.linalg.solve(damped, X)
                what = f"{type(self.part).__name__}.inverse at d = {d}, shift {float(shift):g}"
                assert_close(inverse @ X, expected, dimension=d, condition=condition, what=f"{what}, @ x")
                found = inverse.rmatmul(X.mT)
                assert_close(found, expected.mT, dimension=d, condition=condition, what=f"{what}, rmatmul")

    @check(capability="Gram")
    def check_inverse_stays(self) -> None:
        """An inverse does not change with what it was made of."""
        for d in self.dimensions:
            M, X = gram(self.part, d, d), normal(d, 3, seed=d + 9)
            inverse = self.gram.inverse(M, 0.5, Lapack())
            before = (inverse @ X).clone()
            self.gram.average_(M, 0.5, X.mT, 1.0, Lapack())
            for t in M.tensors().values():
                t.zero_()
            assert torch.equal(inverse @ X, before), (
                f"{type(self.part).__name__}.inverse shares memory with its argument"
            )

    @check(capability="Gram")
    def check_not_positive_definite(self) -> None:
        """What is not positive definite, or not finite, raises ``NotPositiveDefinite``."""
        for d in (1, 5):
            M, X = gram(self.part, d, 0), normal(3, d, seed=1)
            X[1, 0] = torch.nan
            self.gram.average_(M, 0.5, X, 1.0, Lapack())
            wrong = {
                "a negative one": self.part.project(-torch.eye(d).double()),
                "one of NaNs": self.part.project(torch.full((d, d), torch.nan).double()),
                "an average of a row with a NaN": M,
            }
            for words, W in wrong.items():
                self._refuses(W, words)

    def _refuses(self, W: object, words: str) -> None:
        try:
            self.gram.inverse(W, 0.5, Lapack())  # type: ignore[arg-type]
        except NotPositiveDefinite:
            return
        raise AssertionError(
            f"{type(self.part).__name__}.inverse of {words} does not raise NotPositiveDefinite"
        )

    @check(capability="Gram")
    def check_power(self) -> None:
        """``power`` is that of the damped dense matrix, and does not change with what it was made of."""
        for d in self.dimensions:
            for p in (-1.0, -0.25, 0.5):
                M, X = gram(self.part, d, d, rows=max(1, d - 1)), normal(d, 3, seed=d + 9)
                values, vectors = torch.linalg.eigh(M.dense() + 0.1 * torch.eye(d).double())
                expected = (vectors * values**p) @ vectors.mT @ X
                power = self.gram.power(M, p, 0.1, Lapack())
                what = f"{type(self.part).__name__}.power {p:g} at d = {d}"
                condition = float(values[-1] / values[0])
                before = power @ X
                assert_close(before, expected, dimension=d, condition=condition, what=f"{what}, @ x")
                found = power.rmatmul(X.mT)
                assert_close(found, expected.mT, dimension=d, condition=condition, what=f"{what}, rmatmul")
                for t in M.tensors().values():
                    t.zero_()
                assert torch.equal(power @ X, before), f"{what} shares memory with its argument"
                self._refuses_power(M, p)

    def _refuses_power(self, zero: Structure, p: float) -> None:
        """Zero has no negative power."""
        try:
            self.gram.power(zero, p, 0.0, Lapack())
        except NotPositiveDefinite:
            assert p < 0, f"{type(self.part).__name__}.power {p:g} of zero raises NotPositiveDefinite"
            return
        assert p > 0, f"{type(self.part).__name__}.power {p:g} of zero does not raise NotPositiveDefinite"

    @check(capability="Gram")
    def check_eigh(self) -> None:
        """``eigh`` gives eigenvalues ≥ 0 and orthogonal vectors that make the matrix again."""
        for d in self.dimensions:
            M = gram(self.part, d, d, rows=max(1, d - 1))  # singular where d > 1
            A, name = M.dense().clone(), type(self.part).__name__
            values, vectors = self.gram.eigh(M, Lapack())
            assert bool((values >= 0).all()), f"{name}.eigh: eigenvalues {values.tolist()} are not ≥ 0"
            rotates = M.family.rotates  # type: ignore[attr-defined]
            assert (vectors is None) == (not rotates), f"{name}.rotates is {rotates}, and eigh contradicts it"
            Q: Tensor = torch.eye(d).double() if vectors is None else vectors
            assert_close(Q.mT @ Q, torch.eye(d).double(), what=f"{name}.eigh: QᵀQ")
            assert_close(Q * values @ Q.mT, A, dimension=d, scale=size(A), what=f"{name}.eigh: Q Λ Qᵀ")
