"""What every member of a structure family owes, whatever its pattern."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvlab.protocols.structure import Structure
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.family import FamilyChecks
from curvlab.testing.members import LIKE, size, symmetric
from curvlab.testing.problems import normal
from curvlab.testing.reference import entries, nearest_member

#: element-wise passes over the vectors that a product may make beside the flops it tells
PASSES = 8


class MemberChecks(FamilyChecks):
    """Projection, storage, and what a member does."""

    @check()
    def check_obligations(self) -> None:
        """Every method returns what it owes: a member, a matrix [d, d], tensors by field, a number."""
        family, d = self.part, 5
        M = family.project(symmetric(d, 0))
        assert isinstance(M, Structure), (
            f"{self.name}.project(S) must return a Structure, not a {type(M).__name__}"
        )
        of, k = type(M).__name__, 2
        _owes(f"{of}.d", M.d, d)
        _owes(f"{of}.dense().shape", tuple(M.dense().shape), (d, d))
        _owes(f"{of}.family", M.family, family.at(d))
        stored = M.tensors()
        fields = {n for n, value in vars(M).items() if isinstance(value, Tensor)}
        assert isinstance(stored, dict), f"{of}.tensors() must return a dict of tensors by field name"
        _owes(f"the names of {of}.tensors()", set(stored), fields)
        scalars = family.scalars(d)
        assert isinstance(scalars, int), f"{self.name}.scalars(d) must return an int, not {scalars!r}"
        _owes(f"({of} @ x).shape for x [{d}, {k}]", tuple((M @ normal(d, k, seed=1)).shape), (d, k))
        _owes(f"{of}.rmatmul(x).shape, x [{k}, {d}]", tuple(M.rmatmul(normal(k, d, seed=1)).shape), (k, d))
        for number in ("mean_diagonal", "norm", "spectral_norm"):
            _owes(f"{of}.{number}().shape", tuple(getattr(M, number)().shape), ())
        _owes(f"{of}.batch", M.batch, ())
        assert isinstance(M.flops(1), float), f"{of}.flops(columns) must return a float, not {M.flops(1)!r}"
        for what in ("zeros", "eye"):
            made = getattr(family, what)(d, like=LIKE)
            _owes(f"type({self.name}.{what}(d))", type(made), type(M))
        assert family.at(d) in family.options(), f"{self.name}.at(d) is not among its options()"

    @check()
    def check_projection(self) -> None:
        """Π(S) is the member whose symmetric part is nearest to S."""
        for d in self.dimensions:
            S = symmetric(d, d)
            found = self.part.project(S)
            A = found.dense()
            if found.family.linear:
                what = f"{self.name}.project(S) at d = {d}, against argmin ‖½ (Z + Zᵀ) − S‖"
                assert_close(A, nearest_member(self.part, S), dimension=d * d, scale=size(S), what=what)
                continue
            again = self.part.project(A).dense()
            what = f"{self.name}.project of a member, expected the member itself"
            assert_close(again, A, dimension=d * d, scale=size(A), what=what)
            nearest = float((A - S).norm())
            for k, far in enumerate((1e-3, 0.1, 3.0)):
                Z = self.part.project(S + far * symmetric(d, d + 1 + k))
                Z.shift_(far * (k - 1))
                other = float((Z.dense() - S).norm())
                assert other >= nearest - 1e-13 * size(S) * d, (
                    f"{self.name}.project(S) is {nearest:.6g} from S, and another member only {other:.6g}"
                )

    @check()
    def check_own_memory(self) -> None:
        """A projection shares no memory with what is projected, nor do two members that are made."""
        for d in self.dimensions:
            S = symmetric(d, 0)
            kept = S.clone()
            for t in self.part.project(S).tensors().values():
                t.zero_()
            assert torch.equal(S, kept), f"{self.name}.project(S) shares memory with S; clone it"
            a, b = (self.part.eye(d, like=LIKE) for _ in range(2))
            for t in a.tensors().values():
                t.zero_()
            assert torch.equal(b.dense(), torch.eye(d).double()), (
                f"two results of {self.name}.eye share memory"
            )

    @check()
    def check_scalars(self) -> None:
        """``scalars(d)`` is what is stored, contiguous, in the dtype that was asked for."""
        for d in (*self.dimensions, 30):
            for M in (self.part.project(symmetric(d, 0)), self.part.zeros(d, like=LIKE)):
                stored = M.tensors().values()
                counted = sum(t.numel() for t in stored)
                told = self.part.scalars(d)
                assert counted == told, (
                    f"{self.name}.scalars({d}) returns {told}, and {counted} scalars are stored"
                )
                assert all(t.is_contiguous() for t in stored), f"{type(M).__name__}'s tensors are views"
            for dtype in (torch.float32, torch.bfloat16):
                like = torch.zeros(1, dtype=dtype)
                for M in (self.part.zeros(d, like=like), self.part.eye(d, like=like)):
                    found = {t.dtype for t in M.tensors().values()}
                    assert found == {dtype}, f"{self.name}: members like {dtype} are stored in {found}"

    @check(capability="linear")
    def check_independence(self) -> None:
        """No scalar is stored twice or for nothing, and ``tensors()`` hands out the live ones."""
        for d in self.dimensions:
            E = entries(self.part.zeros(d, like=LIKE))
            rank = int(torch.linalg.matrix_rank(E))
            assert rank == E.shape[1], (
                f"{self.name} stores {E.shape[1]} scalars at d = {d}, and only {rank} change the matrix"
            )

    @check()
    def check_zeros_and_eye(self) -> None:
        """``zeros`` is zero and ``eye`` the identity, exactly."""
        for d in self.dimensions:
            zero, one = self.part.zeros(d, like=LIKE).dense(), self.part.eye(d, like=LIKE).dense()
            assert torch.equal(zero, torch.zeros(d, d).double()), f"{self.name}.zeros({d}) is not zero"
            assert torch.equal(one, torch.eye(d).double()), f"{self.name}.eye({d}) is not the identity"

    @check()
    def check_products(self) -> None:
        """``M @ x`` and ``M.rmatmul(x)`` are the dense products."""
        for d in (*self.dimensions, 150):
            M, X, Y = self.member(d, d), normal(d, 3, seed=50), normal(3, d, seed=51)
            A, of = M.dense(), type(M).__name__
            scale = size(A) * size(X, Y) * d
            assert_close(M @ X, A @ X, dimension=d, scale=scale, what=f"{of} @ x at d = {d}")
            assert_close(M.rmatmul(Y), Y @ A, dimension=d, scale=scale, what=f"{of}.rmatmul(x) at d = {d}")

    @check()
    def check_out(self) -> None:
        """``rmatmul(x, out)`` writes into ``out``, all of it, and returns it."""
        for d in self.dimensions:
            M, Y = self.member(d, d), normal(4, d, seed=51)
            expected, out = Y @ M.dense(), torch.full_like(Y, torch.nan)
            what = f"{type(M).__name__}.rmatmul(x, out)"
            assert M.rmatmul(Y, out) is out, f"{what} must return out itself"
            assert_close(out, expected, dimension=d, scale=size(expected) * d, what=what)

    @check()
    def check_non_contiguous(self) -> None:
        """Transposed and strided arguments, and buffers, give what contiguous ones give."""
        for d in self.dimensions:
            M, of = self.member(d, d), type(self.member(d, d)).__name__
            wide = normal(4, 2 * d + 3, seed=51)
            Y = wide[::2, 1 : 2 * d : 2]
            expected, scale = Y @ M.dense(), size(wide) * size(M.dense()) * d
            found = M.rmatmul(Y)
            assert_close(found, expected, dimension=d, scale=scale, what=f"{of}.rmatmul(strided x)")
            transposed = M @ Y.mT, M.dense() @ Y.mT
            assert_close(*transposed, dimension=d, scale=scale, what=f"{of} @ transposed x")
            buffer = torch.full((4, d + 3), torch.nan, dtype=Y.dtype)
            M.rmatmul(Y, buffer[::2, 1 : d + 1])
            found = buffer[::2, 1 : d + 1]
            assert_close(found, expected, dimension=d, scale=scale, what=f"{of}.rmatmul(x, strided out)")
            S = torch.zeros(d, 2 * d, dtype=torch.float64)[:, ::2]
            S.copy_(symmetric(d, 3))
            same = self.part.project(S.contiguous()).dense()
            assert_close(self.part.project(S).dense(), same, what=f"{self.name}.project(strided S)")

    @check(capability="linear")
    def check_vector_space(self) -> None:
        """``combine_`` and ``scale_`` act on members as on matrices, in place."""
        for d in self.dimensions:
            M, N = self.member(d, d), self.member(d, d + 50)
            A, B = M.dense().clone(), N.dense().clone()
            of = type(M).__name__
            assert M.combine_(0.9, N, -0.3) is M, f"{of}.combine_ must return itself"
            assert_close(M.dense(), 0.9 * A - 0.3 * B, dimension=d, scale=size(A, B), what=f"{of}.combine_")
            assert torch.equal(N.dense(), B), f"{of}.combine_(a, other, b) changes its argument other"
            A = M.dense().clone()
            assert M.scale_(-2.0) is M, f"{of}.scale_ must return itself"
            assert_close(M.dense(), -2.0 * A, dimension=d, scale=size(A), what=f"{of}.scale_")

    @check()
    def check_shift(self) -> None:
        """``shift_(c)`` adds c · I in place."""
        for d in self.dimensions:
            for c in (-0.5, 3.0):
                M = self.member(d, d)
                expected = M.dense().clone() + c * torch.eye(d).double()
                assert M.shift_(c) is M, f"{type(M).__name__}.shift_ must return itself"
                assert_close(M.dense(), expected, scale=size(expected), what=f"{type(M).__name__}.shift_")

    @check()
    def check_mean_diagonal(self) -> None:
        """``mean_diagonal()`` is tr(M)/d."""
        for d in self.dimensions:
            M = self.member(d, d)
            A, what = M.dense(), f"{type(M).__name__}.mean_diagonal()"
            assert_close(M.mean_diagonal(), A.diagonal().mean(), dimension=d, scale=size(A), what=what)

    @check()
    def check_norm(self) -> None:
        """``norm()`` is the Frobenius norm."""
        for d in self.dimensions:
            M = self.member(d, d)
            assert_close(M.norm(), M.dense().norm(), dimension=d * d, what=f"{type(M).__name__}.norm()")

    @check()
    def check_spectral_norm(self) -> None:
        """``spectral_norm()`` is at most the largest singular value, and no less than a tenth of it."""
        for d in self.dimensions:
            for M in (self.member(d, d), self.part.eye(d, like=LIKE)):
                found, largest = float(M.spectral_norm()), float(torch.linalg.matrix_norm(M.dense(), 2))
                assert 0.1 * largest <= found <= largest * (1 + 1e-10), (
                    f"{type(M).__name__}.spectral_norm() is {found:.6g}, the true one {largest:.6g}"
                )

    @check()
    def check_flops(self) -> None:
        """``flops(columns)`` is what the products spend, as torch counts them; nothing for no columns."""
        for d, rows in ((1, 1), (9, 16), (64, 1), (257, 16)):
            M, X = self.member(d, 0), normal(rows, d, seed=0)
            told_close(M, X, f"{type(M).__name__}.flops({rows}) at d = {d}")
            costs = [M.flops(k) for k in (0, 1, 2, 5, 100)]
            assert costs == sorted(costs), f"{type(M).__name__}.flops falls with the columns: {costs}"
            assert costs[0] == 0.0 < costs[1], f"{type(M).__name__}.flops of 0 and 1 columns: {costs[:2]}"


def told_close(M: Any, X: Tensor, what: str) -> None:
    """``M.flops`` is never less than is counted, and no more but for a few passes over the vectors."""
    from curvlab.testing.costs import counted

    rows, d = X.shape
    for product in (lambda: M.rmatmul(X), lambda: M @ X.mT):
        products, transforms = counted(product)
        told, dense = M.flops(rows), 2.0 * d * d * rows
        # the transform of what is stored is not one per vector, so it is not told; and a family that was
        # told to transform where a dense product is cheaper may tell the price of that
        least = min(products + transforms / 2, max(dense, products))
        most = 1.1 * (products + transforms) + PASSES * rows * d
        assert least <= told <= most, (
            f"{what} returns {told:.6g}, expected {least:.6g} to {most:.6g} as counted"
        )


def _owes(what: str, found: Any, expected: Any) -> None:
    assert found == expected, f"{what} is {found!r}, expected {expected!r}"
