"""What every structure family owes that is closed under products."""

from __future__ import annotations

import torch

from curvlab.protocols.structure import Group
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.family import FamilyChecks
from curvlab.testing.conformance.members import told_close
from curvlab.testing.members import LIKE, member, size, updated, updated_densely
from curvlab.testing.problems import normal

#: as few rows as columns, or many more: families may take another way then
ROWS = (1, 6, 40)


class GroupChecks(FamilyChecks):
    """Products, congruences, and updates that leave no block symmetric."""

    @property
    def group(self) -> Group:
        """The family as what it is here."""
        assert isinstance(self.part, Group)
        return self.part

    def _what(self, method: str, d: int) -> str:
        return f"{type(self.part).__name__}.{method} at d = {d}"

    @check(capability="Group")
    def check_member(self) -> None:
        """``member`` takes a matrix that has the pattern, and copies it."""
        for d in self.dimensions:
            M = member(self.part, d, d)
            A = M.dense().clone()
            kept = A.clone()
            copy = self.group.member(A)
            assert_close(copy.dense(), kept, dimension=d, scale=size(A), what=self._what("member", d))
            for t in copy.tensors().values():
                t.zero_()
            assert torch.equal(A, kept), (
                f"{self._what('member', d)} shares memory with its argument; clone it"
            )

    @check(capability="Group")
    def check_congruence(self) -> None:
        """``congruence(K, X)`` is Π(Kᵀ XᵀX K)."""
        for d in (*self.dimensions, 150):
            for n in ROWS:
                K, X = member(self.part, d, d), normal(n, d, seed=d + 50)
                S = X @ K.dense()
                S = S.mT @ S
                found, expected = self.group.congruence(K, X).dense(), self.part.project(S).dense()
                what = self._what(f"congruence of {n} rows", d)
                assert_close(found, expected, dimension=n + d, scale=size(expected, S), what=what)

    @check(capability="Group")
    def check_square(self) -> None:
        """``square(K)`` is Π(Kᵀ K)."""
        for d in (*self.dimensions, 150):
            K = member(self.part, d, d)
            A = K.dense()
            expected = self.part.project(A.mT @ A).dense()
            found, scale = self.group.square(K).dense(), size(A) ** 2 * d
            assert_close(found, expected, dimension=d, scale=scale, what=self._what("square", d))

    @check(capability="Group")
    def check_product(self) -> None:
        """``product(K, M)`` is the dense one: members, symmetric or not, are closed under products."""
        for d in (*self.dimensions, 150):
            K, M = member(self.part, d, d), member(self.part, d, d + 10)
            expected = K.dense() @ M.dense()
            found = self.group.product(K, M)
            scale = size(K.dense()) * size(M.dense()) * d
            assert_close(found.dense(), expected, dimension=d, scale=scale, what=self._what("product", d))
            assert found.family == self.part.at(d), f"{self._what('product', d)} has a different family"

    @check(capability="Group")
    def check_gramian(self) -> None:
        """``gramian(K)`` multiplies by K Kᵀ from both sides, into ``out`` too, for the flops it tells."""
        for d in self.dimensions:
            K, X = member(self.part, d, d), normal(d, 4, seed=d + 50)
            A = K.dense().clone()
            G, dense = self.group.gramian(K), A @ A.mT
            scale, what = size(A) ** 2 * size(X) * d**2, self._what("gramian", d)
            assert_close(G @ X, dense @ X, dimension=d, scale=scale, what=f"{what}, @ x")
            assert_close(G.rmatmul(X.mT), X.mT @ dense, dimension=d, scale=scale, what=f"{what}, rmatmul")
            out = torch.full((4, d), torch.nan).double()
            assert G.rmatmul(X.mT, out) is out, f"{what}: rmatmul(x, out) must return out itself"
            assert_close(out, X.mT @ dense, dimension=d, scale=scale, what=f"{what}, rmatmul into out")
            told_close(G, X.mT.contiguous(), f"{what}: flops")

    @check(capability="Group")
    def check_inverse_free_updates(self) -> None:
        """Transposes stay right over updates that leave no block symmetric: as the dense updates do."""
        for d in self.dimensions:
            K = self.part.eye(d, like=LIKE)
            dense = K.dense().clone()
            for k in range(6):
                K = updated(self.group, K, d + k, 0.4)
                dense = updated_densely(self.part, dense, d + k, 0.4)
            what = f"{type(self.part).__name__}: six updates K ← K (I − β m) at d = {d}"
            assert_close(K.dense(), dense, dimension=d**2, condition=100.0, scale=size(dense), what=what)
            x, A, what = normal(3, d, seed=1), K.dense(), f"{type(K).__name__} after six updates"
            scale = size(A) * size(x) * d
            assert_close(K.rmatmul(x), x @ A, dimension=d, scale=scale, what=f"{what}: rmatmul(x)")
            assert_close(K @ x.mT, A @ x.mT, dimension=d, scale=scale, what=f"{what}: @ x")
