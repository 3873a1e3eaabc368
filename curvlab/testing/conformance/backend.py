"""The suite of backends: precision, in which numbers are stored and factorized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.protocols.backend import Backend
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.exercised import Exercised, Found
from curvlab.testing.problems import normal

#: small ones, and one above the dimension at which implementations change
DIMENSIONS = (1, 4, 90)

FACTORIZATIONS = ("cholesky", "inverse", "eigh")


class BackendConformance(Exercised):
    """Gram matrices and factorizations against the dense truth, in every dtype that factors are held in."""

    kind = "precision"
    part: Backend

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def spd(self, d: int, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Well-conditioned, in the backend's own place."""
        X = normal(*batch, 3 * d, d, seed=d)
        A = X.mT @ X / (3 * d) + 0.1 * torch.eye(d).double()
        return A.to(dtype=dtype, device=self.part.torch_device)

    @property
    def work(self) -> torch.dtype:
        """What a step of this precision computes in."""
        return self.part.dtypes.work

    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Those in which factors may be held: the backend's own, float64 and bfloat16."""
        return tuple(dict.fromkeys((self.part.dtypes.factors, torch.float64, torch.bfloat16)))

    def exercise(self) -> Found:
        A = self.spd(5, dtype=self.work)
        values, vectors = self.part.eigh(A)
        X = normal(3, 5, seed=1).to(A)
        gram = self.part.gram_(A.clone(), 0.5, X, 0.3)
        found = {"L": self.part.cholesky(A), "inverse": self.part.inverse(A, 0.1), "gram": gram}
        return {**found, "values": values, "vectors": vectors}

    @check()
    def check_obligations(self) -> None:
        """``dtypes`` gives every role a floating dtype of torch, ``torch_device`` is a device."""
        device = self.part.torch_device
        for role, dtype in vars(self.part.dtypes).items():
            unset = dtype is None and role in ("compute", "rows")
            floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
            assert unset or floating, f"{self.name}.dtypes.{role} must be a floating dtype, not {dtype!r}"
        assert isinstance(device, torch.device), f"{self.name}.torch_device must be a device, not {device!r}"

    @check()
    def check_gram(self) -> None:
        """``gram_`` is keep · M + weight · XᵀX, in M itself."""
        for d in (*DIMENSIONS, 300):
            X = normal(7, d, seed=d).to(dtype=self.work, device=self.part.torch_device)
            M = self.spd(d, dtype=self.work)
            expected = 0.9 * M.double() + 0.3 * X.double().mT @ X.double()
            found = self.part.gram_(M, 0.9, X, 0.3)
            assert found is M, f"{self.name}.gram_ must return M itself"
            what = f"{self.name}.gram_ at d = {d}"
            assert_close(M, expected.to(M.dtype), dimension=10, condition=4.0, what=what)

    @check()
    def check_cholesky(self) -> None:
        """``cholesky`` is lower triangular with L Lᵀ = A, of one matrix and of a stack."""
        for dtype in self.dtypes():
            for A in self._matrices(dtype):
                L = self.part.cholesky(A)
                what = f"{self.name}.cholesky of {tuple(A.shape)} in {dtype}"
                assert L.dtype is dtype, f"{what} is {L.dtype}"
                assert torch.equal(L, L.tril()), f"{what} is not lower triangular"
                assert_close(L @ L.mT, A, dimension=A.shape[-1], what=f"{what}: L Lᵀ")

    @check()
    def check_inverse(self) -> None:
        """``inverse`` is (A + shift·I)⁻¹, for a shift that is a number or a tensor."""
        for dtype in self.dtypes():
            for A in self._matrices(dtype):
                for shift in (0.0, 0.5, torch.tensor(2.0, dtype=dtype, device=A.device)):
                    found = self.part.inverse(A, shift)
                    damped = A.double() + float(shift) * torch.eye(A.shape[-1], device=A.device).double()
                    expected, condition = torch.linalg.inv(damped), float(torch.linalg.cond(damped).max())
                    what = f"{self.name}.inverse of {tuple(A.shape)} in {dtype}, shift {float(shift)}"
                    assert found.dtype is dtype, f"{what} is {found.dtype}"
                    d = A.shape[-1]
                    assert_close(found, expected.to(dtype), dimension=d, condition=condition, what=what)

    @check()
    def check_eigh(self) -> None:
        """``eigh`` gives ascending eigenvalues and orthogonal eigenvectors in columns."""
        for dtype in self.dtypes():
            for A in self._matrices(dtype):
                values, Q = self.part.eigh(A)
                what, d = f"{self.name}.eigh of {tuple(A.shape)} in {dtype}", A.shape[-1]
                assert {values.dtype, Q.dtype} == {dtype}, f"{what} is {values.dtype} and {Q.dtype}"
                assert bool((values.diff(dim=-1) >= 0).all()), f"{what}: eigenvalues do not ascend"
                eye = torch.eye(d, dtype=dtype, device=A.device).expand_as(A)
                assert_close(Q.mT @ Q, eye, dimension=d, what=f"{what}: QᵀQ")
                assert_close(Q * values.unsqueeze(-2) @ Q.mT, A, dimension=d, what=f"{what}: Q Λ Qᵀ")

    @check()
    def check_lifts(self) -> None:
        """A factorization that fails for rounding alone is retried in float64."""
        A = _barely_positive().to(self.part.torch_device)
        L, X = self.part.cholesky(A), self.part.inverse(A)
        assert L.dtype is X.dtype is torch.float32, f"{self.name}: a factor of float32 is {L.dtype}"
        assert bool(torch.isfinite(L).all() and torch.isfinite(X).all()), f"{self.name}: not finite"
        assert_close(L @ L.mT, A, what=f"{self.name}.cholesky of a matrix that float32 cannot factorize")

    @check()
    def check_not_positive_definite(self) -> None:
        """What is negative, or not finite, raises ``NotPositiveDefinite``; of ``eigh`` the latter alone."""
        for dtype in self.dtypes():
            for d in DIMENSIONS:
                A = -self.spd(d, dtype=dtype)
                nan = torch.full_like(A, torch.nan)
                for method in FACTORIZATIONS:
                    if method != "eigh":
                        self._refuses(method, A, "negative")
                    self._refuses(method, nan, "NaN")

    def _refuses(self, method: str, A: Tensor, words: str) -> None:
        call: Callable[[Tensor], Any] = getattr(self.part, method)
        said: str | None = None
        try:
            call(A)
        except NotPositiveDefinite as error:
            said = str(error).strip()
        d = A.shape[-1]
        what = f"{self.name}.{method} of a {words} {d}×{d} matrix"
        assert said is not None, f"{what} does not raise NotPositiveDefinite"
        assert said, f"{what}: NotPositiveDefinite has an empty message"

    @check()
    def check_arguments(self) -> None:
        """Factorizations leave their matrix alone, and hold none of its memory."""
        for d in DIMENSIONS:
            A = self.spd(d, dtype=self.work)
            kept = A.clone()
            for method in FACTORIZATIONS:
                made = getattr(self.part, method)(A)
                assert torch.equal(A, kept), f"{self.name}.{method} changes its argument"
                for t in made if isinstance(made, tuple) else (made,):
                    t.fill_(7.0)
                assert torch.equal(A, kept), f"{self.name}.{method} returns its argument's memory"

    @check()
    def check_row_major(self) -> None:
        """Factors are contiguous: one that was loaded from a file is, and products round alike then."""
        A = self.spd(5, dtype=self.work)
        for method in FACTORIZATIONS:
            made = getattr(self.part, method)(A)
            for t in made if isinstance(made, tuple) else (made,):
                assert t.is_contiguous(), f"{self.name}.{method}: strides {t.stride()}; make it contiguous"

    def _matrices(self, dtype: torch.dtype) -> list[Tensor]:
        return [*(self.spd(d, dtype=dtype) for d in DIMENSIONS), self.spd(3, 2, dtype=dtype)]


def _barely_positive() -> Tensor:
    """A float32 matrix that is positive definite, and of which float32 finds no Cholesky factor."""
    for seed in range(1000):
        X = normal(12, 12, seed=seed).float()
        A = X.mT @ (X * torch.logspace(0, -8, 12).unsqueeze(-1))
        A = 0.5 * (A + A.mT)
        single, double = (int(torch.linalg.cholesky_ex(A.to(t))[1]) for t in (torch.float32, torch.float64))
        if single and not double:
            return A
    raise Skipped("this machine has no test matrix that float64 factorizes and float32 does not")
