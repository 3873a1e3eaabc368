"""Stacked members: every operation on several matrices side by side is the loop over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from curvlab.protocols.structure import Group, Structure
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.family import FamilyChecks
from curvlab.testing.members import LIKE, size, symmetric
from curvlab.testing.problems import normal

BATCHES = ((1,), (3,), (2, 3))
DIMENSIONS = (1, 4, 7)
CASES = tuple(product(DIMENSIONS, BATCHES))

Place = tuple[int, ...]
#: a member or its matrix, a product, a number: by place
Alone = Mapping[Place, Any]


class StackChecks(FamilyChecks):
    """Leading axes."""

    @check()
    def check_stacked_members(self) -> None:
        """Projections, zeros and identities of stacked matrices are stacked."""
        for d, batch in CASES:
            S, eye = symmetric(d, d, *batch), torch.eye(d).double()
            alone = {p: self.part.project(S[p]) for p in places(batch)}
            zero, one = torch.zeros_like(S), eye.expand(*batch, d, d)
            self._made("project", self.part.project(S), alone, size(S))
            self._made("zeros", self.part.zeros(d, like=LIKE, batch=batch), cut(zero, batch))
            self._made("eye", self.part.eye(d, like=LIKE, batch=batch), cut(one, batch))

    def _made(self, method: str, M: Structure, alone: Alone, scale: float = 1.0) -> None:
        batch, d = _batch(alone), _dense(next(iter(alone.values()))).shape[-1]
        what = f"{self.name}.{method}"
        assert M.batch == batch, f"{what}: batch is {M.batch}, expected {batch}"
        assert M.d == d, f"{what} of stacked matrices: d is {M.d}, expected {d}"
        assert all(t.is_contiguous() for t in M.tensors().values()), f"{what}: stacked tensors are strided"
        stacked(M, alone, scale, what)

    @check()
    def check_stacked_products(self) -> None:
        """``@`` and ``rmatmul`` of stacked members, and into ``out``."""
        for d, batch in CASES:
            M, X = self.member(d, d, *batch), normal(*batch, 3, d, seed=50)
            of, A = type(M).__name__, M.dense()
            scale, right = size(A) * size(X) * d, cut(X @ A, batch)
            stacked(M @ X.mT, cut(A @ X.mT, batch), scale, f"stacked {of} @ x")
            stacked(M.rmatmul(X), right, scale, f"stacked {of}.rmatmul")
            out = torch.full_like(X, torch.nan)
            M.rmatmul(X, out)
            stacked(out, right, scale, f"stacked {of}.rmatmul into out")

    @check()
    def check_stacked_numbers(self) -> None:
        """Mean diagonals, norms and shifts of stacked members, one for each."""
        for d, batch in CASES:
            M = self.member(d, d, *batch)
            A, of = M.dense().clone(), type(M).__name__
            means, norms = A.diagonal(dim1=-2, dim2=-1).mean(-1), A.square().sum((-2, -1)).sqrt()
            stacked(M.mean_diagonal(), cut(means, batch), size(A), f"stacked {of}.mean_diagonal")
            stacked(M.norm(), cut(norms, batch), size(A) * d, f"stacked {of}.norm")
            found, most = M.spectral_norm(), torch.linalg.matrix_norm(A, 2)
            assert found.shape == batch, f"stacked {of}.spectral_norm: {tuple(found.shape)}, expected {batch}"
            assert bool((found <= most * (1 + 1e-10)).all()), f"stacked {of}.spectral_norm is too large"
            M.shift_(0.5)
            stacked(M, cut(A + 0.5 * torch.eye(d), batch), size(A), f"stacked {of}.shift_")

    @check(capability="linear")
    def check_stacked_coefficients(self) -> None:
        """``combine_`` with a tensor of coefficients gives each stacked matrix its own."""
        for (d, batch), boxed in product(CASES, (False, True)):
            M, N = self.member(d, d, *batch), self.member(d, d + 50, *batch)
            A, B = M.dense().clone(), N.dense().clone()
            a, b = (normal(*batch, seed=k) for k in (1, 2))
            M.combine_(a if boxed else 1.0, N, b)
            expected = A * (a[..., None, None] if boxed else 1.0) + B * b[..., None, None]
            stacked(M, cut(expected, batch), size(A, B) * 10, f"stacked {type(M).__name__}.combine_")

    @check(capability="Group")
    def check_stacked_group(self) -> None:
        """Products, squares, congruences, members and gramians of stacked members."""
        for (d, batch), n in product(CASES, (1, 20)):
            K, M = self.member(d, d, *batch), self.member(d, d + 50, *batch)
            self._group(K, M, normal(*batch, n, d, seed=70), batch)

    def _group(self, K: Structure, M: Structure, X: Tensor, batch: Place) -> None:
        family, (n, d) = self.part, X.shape[-2:]
        assert isinstance(family, Group)
        A, B = K.dense(), M.dense()
        alone = {p: at(K, p) for p in places(batch)}
        scale = size(A, B) ** 2 * d
        far, further = scale * size(X) * d, scale * size(X) ** 2 * n * d
        S = {p: family.congruence(k, X[p]) for p, k in alone.items()}
        squares = {p: family.square(k) for p, k in alone.items()}
        made: dict[str, tuple[Structure, Alone, float]] = {
            "product": (family.product(K, M), cut(A @ B, batch), scale),
            "square": (family.square(K), squares, scale),
            "congruence": (family.congruence(K, X), S, further),
            "member": (family.member(A), alone, scale),
        }
        for method, (found, expected, allowed) in made.items():
            stacked(found, expected, allowed, f"{self.name}.{method}")
            assert found.batch == batch, f"{self.name}.{method}: batch is {found.batch}, expected {batch}"
        G = family.gramian(K)
        stacked(G @ X.mT, cut(A @ A.mT @ X.mT, batch), far, f"{self.name}.gramian @ x")
        stacked(G.rmatmul(X), cut(X @ A @ A.mT, batch), far, f"{self.name}.gramian.rmatmul")

    @check()
    def check_parts_are_views(self) -> None:
        """``part(k)`` is the k-th of the stacked matrices, in the same memory."""
        for d in DIMENSIONS:
            M = self.member(d, 0, 3)
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


def cut(whole: Tensor, batch: Place) -> dict[Place, Tensor]:
    """A tensor by place."""
    return {place: whole[place] for place in places(batch)}


def stacked(whole: Any, alone: Alone, scale: float, what: str) -> None:
    """``whole`` holds what ``alone`` has at every place."""
    found, batch = _dense(whole), _batch(alone)
    shape = tuple(found.shape[: len(batch)])
    assert shape == batch, f"{what}: leading axes are {shape}, expected {batch}"
    for place, expected in alone.items():
        where = f"{what} at {place}"
        assert_close(found[place], _dense(expected), dimension=100, scale=scale, what=where)


def _batch(alone: Alone) -> Place:
    return tuple(k + 1 for k in max(alone))


def _dense(thing: Any) -> Tensor:
    found: Tensor = thing if isinstance(thing, Tensor) else thing.dense()
    return found
