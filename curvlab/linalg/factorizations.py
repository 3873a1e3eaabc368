"""Factorizations of symmetric matrices: in float32 or wider, once more in float64, then an error in words.

LAPACK has no halves.  A narrower matrix is lifted, and what is found of it rounded to its dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.verdict import holds
from curvlab.linalg.work import work_dtype


def cholesky(A: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b d d"]:
    """Lower Cholesky factor; raises ``NotPositiveDefinite``."""
    return _lifted(A, _cholesky)


def inverse(A: Float[Tensor, "*b d d"], shift: Tensor | float = 0.0) -> Float[Tensor, "*b d d"]:
    """``(A + shift·I)⁻¹``; A is not changed.  Raises ``NotPositiveDefinite``."""
    rule = _inverse if A.dim() == 2 else _lapack_inverse
    try:
        return _lifted(A, lambda a: rule(a, shift))
    except NotPositiveDefinite:
        raise NotPositiveDefinite(_description(_shifted(A.double(), shift))) from None


def solve_shifted(A: Float[Tensor, "d d"], shift: float, b: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """``(A + shift·I)⁻¹ b`` by a Cholesky factor in float64, as float64; A is not changed.

    Raises ``NotPositiveDefinite``.
    """
    L = _cholesky(_shifted(A.double(), shift))
    return torch.cholesky_solve(b.double().unsqueeze(1), L).squeeze(1)


def eigh(A: Float[Tensor, "*b d d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d d"]]:
    """Eigenvalues ascending, eigenvectors in columns; raises ``NotPositiveDefinite``."""
    wide = A.to(_wide(A))
    try:
        values, vectors = _eigh(wide)
    except NotPositiveDefinite:
        values, vectors = _eigh(A.double())
    return values.to(A.dtype), _row_major(vectors.to(A.dtype))


def double_eigh(A: Float[Tensor, "*b d d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d d"]]:
    """``eigh`` in float64, with a result in float64, whatever the dtype of A."""
    return eigh(A.double())


def least_squares(A: Float[Tensor, "*b m d"], b: Float[Tensor, "*b m"]) -> Float[Tensor, "*b d"]:
    """The shortest x of those with the least ``‖A x − b‖``, in float32 or wider, by singular values."""
    work = torch.promote_types(_wide(A), b.dtype)
    if not holds(torch.isfinite(A).all()) or not holds(torch.isfinite(b).all()):
        return b.new_full((*b.shape[:-1], A.shape[-1]), float("nan"))  # LAPACK refuses what is not finite
    found = torch.linalg.lstsq(A.to(work), b.to(work).unsqueeze(-1), driver="gelsd").solution
    x: Tensor = found.squeeze(-1)
    return x.to(b.dtype)


def qr(A: Float[Tensor, "*b d k"], *, complete: bool = False) -> Float[Tensor, "*b d p"]:
    """Orthonormal columns that span the first columns of A, however many one takes (Q of QR).

    ``complete``: d columns, the others orthogonal to all of A.
    """
    Q: Tensor = torch.linalg.qr(A.to(_wide(A)), mode="complete" if complete else "reduced").Q
    return _row_major(Q.to(A.dtype))


def svd(
    A: Float[Tensor, "m d"],
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "k d"]]:
    """Thin singular value decomposition ``U diag(s) Vᵀ``, s descending.

    Raises ``NotPositiveDefinite`` for non-finite numbers.
    """
    wide = A.to(_wide(A))
    if not holds(torch.isfinite(wide).all()):
        raise NotPositiveDefinite(_description(wide))
    U, s, Vt = torch.linalg.svd(wide, full_matrices=False)
    return _row_major(U.to(A.dtype)), s.to(A.dtype), _row_major(Vt.to(A.dtype))


def singular_system(
    A: Float[Tensor, "m d"], b: Float[Tensor, " m"]
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """s, Vᵀ and ``Uᵀ b`` of ``A = U diag(s) Vᵀ``, without U: ``2 m d² + O(d³)`` flops for a tall A.

    The triangular factor of ``[A b]`` holds all that is needed, to full accuracy.  Raises like ``svd``.
    """
    m, d = A.shape
    if m <= d:
        U, s, Vt = svd(A)
        return s, Vt, U.mT @ b.to(U.dtype)
    wide = torch.cat([A, b.to(A.dtype).unsqueeze(1)], 1).to(_wide(A))
    if not holds(torch.isfinite(wide).all()):
        raise NotPositiveDefinite(_description(wide))
    R = torch.linalg.qr(wide, mode="r").R[:d].to(A.dtype)
    U, s, Vt = svd(R[:, :d])
    return s, Vt, U.mT @ R[:, d]


def solve_triangular(
    R: Float[Tensor, "*b d d"], B: Float[Tensor, "*b d k"], *, upper: bool
) -> Float[Tensor, "*b d k"]:
    """``R⁻¹ B`` for a triangular R, in the wider of the two dtypes, float32 at least; rounded to B's."""
    work = torch.promote_types(_wide(R), B.dtype)
    found: Tensor = torch.linalg.solve_triangular(R.to(work), B.to(work), upper=upper)
    return found.to(B.dtype)


def _wide(A: Tensor) -> torch.dtype:
    return work_dtype(A.dtype)


def _lifted(A: Tensor, factorize: Callable[[Tensor], Tensor]) -> Tensor:
    """``factorize(A)``, and once more in float64 if that fails.

    The error describes A, not the part of it that gave way.
    """
    for dtype in dict.fromkeys((_wide(A), torch.float64)):
        try:
            return _row_major(factorize(A.to(dtype)).to(A.dtype))
        except NotPositiveDefinite:
            continue
    raise NotPositiveDefinite(_description(A.double()))


def _row_major(A: Tensor) -> Tensor:
    """LAPACK leaves columns contiguous; a matrix that was restored from a file has its rows so.

    Products round differently on the two, and a resumed run must be the same to the bit.
    """
    return A.contiguous()


def _cholesky(A: Tensor) -> Tensor:
    L: Tensor
    L, info = torch.linalg.cholesky_ex(A)
    if not holds((info == 0).all()) or not holds(torch.isfinite(L.diagonal(dim1=-2, dim2=-1)).all()):
        raise NotPositiveDefinite(_description(A))
    return L


#: below this dimension LAPACK's inverse is as fast as the blocked one
LEAF = 64
#: an inverse by Schur complements loses ε κ² of its digits, one by a Cholesky factor ε κ: where ε κ² is above
#: this, the faster is not good enough (κ ≈ 900 in float32; damped factors are usually below 100)
LOSS = 0.1


def _inverse(A: Float[Tensor, "d d"], shift: Tensor | float) -> Float[Tensor, "d d"]:
    """Blocked where that is accurate, LAPACK's where it is not; ``‖A‖ · max X_ii`` stands for κ."""
    if A.shape[-1] <= LEAF:
        return _lapack_inverse(A, shift)
    try:
        X = _blocked_inverse(A, shift)
    except NotPositiveDefinite:  # perhaps of a complement that rounding has spoilt
        return _lapack_inverse(A, shift)
    condition = (torch.linalg.matrix_norm(A) + shift) * X.diagonal().max()
    accurate = holds(torch.finfo(A.dtype).eps * condition.square() <= LOSS)
    return X if accurate else _lapack_inverse(A, shift)


def _lapack_inverse(A: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    return torch.cholesky_inverse(_cholesky(_shifted(A, shift)))


def _shifted(A: Tensor, shift: Tensor | float) -> Tensor:
    damped = A.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(shift)
    return damped


def _blocked_inverse(
    A: Float[Tensor, "d d"], shift: Tensor | float = 0.0, out: Tensor | None = None
) -> Float[Tensor, "d d"]:
    """Inverse of an SPD matrix by Schur complements, 4/3 d³ flops, all in matrix products.

    ``P = A₁₁⁻¹``, ``T = P A₁₂``, ``Q = (A₂₂ − A₂₁ T)⁻¹`` give ``[[P + T Q Tᵀ, −T Q], [·, Q]]``.  A is
    positive definite exactly if every Schur complement is, so a leaf's Cholesky factor still finds out.
    The shift is handed down to the leaves: no damped copy of A is made.  A third faster than LAPACK's
    potri, its slow twin ``_lapack_inverse``, on one thread at d = 512.
    """
    d = A.shape[-1]
    out = torch.empty_like(A) if out is None else out
    if d <= LEAF:
        L, info = torch.linalg.cholesky_ex(_shifted(A, shift))
        if not holds(info == 0):
            raise NotPositiveDefinite(_description(A))
        return out.copy_(torch.cholesky_inverse(L))
    h = d // 2
    A12, P, TQ, Q = A[:h, h:], out[:h, :h], out[:h, h:], out[h:, h:]
    _blocked_inverse(A[:h, :h], shift, P)
    T = P @ A12
    _blocked_inverse(torch.addmm(A[h:, h:], A12.mT, T, alpha=-1.0), shift, Q)
    torch.mm(T, Q, out=TQ)
    P.addmm_(TQ, T.mT)
    out[h:, :h] = TQ.neg_().mT
    return out


def _eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(A)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NotPositiveDefinite(f"{_description(A)}: {error}") from error
    if not holds(torch.isfinite(values).all()):
        raise NotPositiveDefinite(_description(A))
    return values, vectors


def _description(A: Tensor) -> str:
    shape = "×".join(str(k) for k in A.shape)
    if not bool(torch.isfinite(A).all()):
        return f"a {shape} factor holds non-finite values"
    smallest = float(A.diagonal(dim1=-2, dim2=-1).min())
    return f"a {shape} factor is not positive definite in {A.dtype} (smallest diagonal entry {smallest:.3g})"
