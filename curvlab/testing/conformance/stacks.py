"""Stacked members: every operation on several matrices side by side is the loop over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from curvlab.protocols.structure import Group, Structure
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.family import FamilyChecks
from curvlab.testing.members import LIKE, member, size, symmetric
from curvlab.testing.problems import normal

BATCHES = ((1,), (3,), (2, 3))
DIMENSIONS = (1, 4, 7)

Place = tuple[int, ...]


class StackChecks(FamilyChecks):
    """Leading axes."""

    def _cases(self) -> Iterator[tuple[int, Place]]:
        yield from product(DIMENSIONS, BATCHES)

    @check()
    def check_stacked_members(self) -> None:
        """Projections, zeros and identities of stacked matrices are stacked."""
        name = type(self.part).__name__
        for d, batch in self._cases():
            S = symmetric(d, d, *batch)
            made = {
                "project": (self.part.project(S), lambda p, S=S: self.part.project(S[p])),
                "zeros": (
                    self.part.zeros(d, like=LIKE, batch=batch),
                    lambda p, d=d: torch.zeros(d, d).double(),
                ),
                "eye": (self.part.eye(d, like=LIKE, batch=batch), lambda p, d=d: torch.eye(d).double()),
            }
            for method, (M, alone) in made.items():
                assert M.batch == batch, f"{name}.{method}: batch is {M.batch}, it owes {batch}"
                assert M.d == d, f"{name}.{method} of stacked matrices: d is {M.d}, it owes {d}"
                assert all(t.is_contiguous() for t in M.tensors().values()), f"{name}.{method}: strided"
                stacked(M, batch, alone, size(S), f"{name}.{method}")

    @check()
    def check_stacked_products(self) -> None:
        """``@`` and ``rmatmul`` of stacked members, and into ``out``."""
        for d, batch in self._cases():
            M, X = member(self.part, d, d, *batch), normal(*batch, 3, d, seed=50)
            of, scale = type(M).__name__, size(M.dense()) * size(X) * d
            A = M.dense()
            stacked(M @ X.mT, batch, lambda p: A[p] @ X[p].mT, scale, f"stacked {of} @ x")
            stacked(M.rmatmul(X), batch, lambda p: X[p] @ A[p], scale, f"stacked {of}.rmatmul")
            out = torch.full_like(X, torch.nan)
            M.rmatmul(X, out)
            stacked(out, batch, lambda p: X[p] @ A[p], scale, f"stacked {of}.rmatmul into out")

    @check()
    def check_stacked_numbers(self) -> None:
        """Mean diagonals, norms and shifts of stacked members, one for each."""
        for d, batch in self._cases():
            M = member(self.part, d, d, *batch)
            A, of = M.dense().clone(), type(M).__name__
            diagonal = A.diagonal(dim1=-2, dim2=-1).mean(-1)
            stacked(M.mean_diagonal(), batch, lambda p: diagonal[p], size(A), f"stacked {of}.mean_diagonal")
            stacked(M.norm(), batch, lambda p: A[p].norm(), size(A) * d, f"stacked {of}.norm")
            found, most = M.spectral_norm(), torch.linalg.matrix_norm(A, 2)
            assert found.shape == batch, f"stacked {of}.spectral_norm: {tuple(found.shape)}, it owes {batch}"
            assert bool((found <= most * (1 + 1e-10)).all()), f"stacked {of}.spectral_norm is too large"
            M.shift_(0.5)
            stacked(M, batch, lambda p: A[p] + 0.5 * torch.eye(d), size(A), f"stacked {of}.shift_")

    @check(capability="linear")
    def check_stacked_coefficients(self) -> None:
        """``combine_`` with a tensor of coefficients gives each stacked matrix its own."""
        for d, batch in self._cases():
            for boxed in (False, True):
                M, N = member(self.part, d, d, *batch), member(self.part, d, d + 50, *batch)
                A, B = M.dense().clone(), N.dense().clone()
                a, b = (normal(*batch, seed=k) for k in (1, 2))
                M.combine_(a if boxed else 1.0, N, b)
                one = torch.ones_like(a)
                mine = a if boxed else one
                expected = {p: mine[p] * A[p] + b[p] * B[p] for p in places(batch)}
                what = f"stacked {type(M).__name__}.combine_"
                stacked(M, batch, lambda p: expected[p], size(A, B) * 10, what)

    @check(capability="Group")
    def check_stacked_group(self) -> None:
        """Products, squares, congruences, members and gramians of stacked members."""
        family = self.part
        assert isinstance(family, Group)
        for (d, batch), n in product(self._cases(), (1, 20)):
            K, M = member(family, d, d, *batch), member(family, d, d + 50, *batch)
            X, name = normal(*batch, n, d, seed=70), type(family).__name__
            scale = size(K.dense(), M.dense()) ** 2 * d
            A, B = K.dense(), M.dense()
            stacked(family.product(K, M), batch, lambda p: A[p] @ B[p], scale, f"{name}.product")
            stacked(family.square(K), batch, lambda p: family.square(at(K, p)), scale, f"{name}.square")
            far = scale * size(X) ** 2 * n * d
            found = family.congruence(K, X)
            stacked(found, batch, lambda p: family.congruence(at(K, p), X[p]), far, f"{name}.congruence")
            stacked(family.member(K.dense()), batch, lambda p: at(K, p), scale, f"{name}.member")
            G, far = family.gramian(K), scale * size(X) * d
            square = A @ A.mT
            stacked(G @ X.mT, batch, lambda p: square[p] @ X[p].mT, far, f"{name}.gramian @ x")
            stacked(G.rmatmul(X), batch, lambda p: X[p] @ square[p], far, f"{name}.gramian.rmatmul")
            for made in (family.product(K, M), family.square(K), family.congruence(K, X)):
                assert made.batch == batch, f"{name}: batch is {made.batch}, it owes {batch}"

    @check()
    def check_parts_are_views(self) -> None:
        """``part(k)`` is the k-th of the stacked matrices, in the same memory."""
        for d in DIMENSIONS:
            M = member(self.part, d, 0, 3)
            before = M.dense().clone()
            M.part(1).shift_(2.0)
            A, of = M.dense(), type(M).__name__
            expected = before[1] + 2.0 * torch.eye(d).double()
            assert_close(A[1], expected, scale=size(before), what=f"a {of} whose part(1) was shifted")
            assert torch.equal(A[::2], before[::2]), f"{of}.part(1) shares memory with other parts"


def places(batch: Place) -> Iterator[Place]:
    """The index of every stacked matrix."""
    return product(*(range(k) for k in batch))


def at(M: Structure, place: Place) -> Structure:
    """One of the stacked matrices."""
    for k in place:
        M = M.part(k)
    return M


def stacked(whole: Any, batch: Place, alone: Callable[[Place], Any], scale: float, what: str) -> None:
    """``whole`` holds ``alone(place)`` at every place."""
    found = _dense(whole)
    shape = tuple(found.shape[: len(batch)])
    assert shape == batch, f"{what}: leading axes are {shape}, it owes {batch}"
    for place in places(batch):
        assert_close(
            found[place], _dense(alone(place)), dimension=100, scale=scale, what=f"{what} at {place}"
        )


def _dense(thing: Any) -> Tensor:
    found: Tensor = thing if isinstance(thing, Tensor) else thing.dense()
    return found
