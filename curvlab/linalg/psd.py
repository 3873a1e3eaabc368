"""Eigenvalues of matrices that are positive semidefinite by construction."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.verdict import holds

#: steps that a moving average remembers, at most; each rounds every entry once more
AVERAGED = 1000


def nonnegative(
    values: Float[Tensor, "*b d"], dtype: torch.dtype | None = None, *, what: str = "a factor"
) -> Float[Tensor, "*b d"]:
    """Eigenvalues of a PSD matrix, ascending, with those that rounding made negative set to zero.

    Rounding reaches ``(d + 1000) ε`` of the largest eigenvalue, ε being that of ``dtype``, in which the
    matrix was computed (that of ``values``, unless given): products sum over d and averages over steps.
    Raises ``NotPositiveDefinite``, with the value, for one below that.  Reads one number back to the host.
    """
    d = values.shape[-1]
    numbers = torch.finfo(dtype or values.dtype)
    allowed = (d + AVERAGED) * numbers.eps
    # products of gradients as small as 1e-20 are denormal in float32, and keep no relative accuracy
    wrong = values < -allowed * values.amax(-1, keepdim=True).clamp(min=0.0) - d * numbers.tiny
    if not holds(~wrong.any()):
        where = wrong.any(-1)
        low, high = float(values[where].min()), float(values[where].amax(-1).min())
        raise NotPositiveDefinite(
            f"{what} of dimension {d} is not positive semidefinite: its smallest eigenvalue is {low:.3g}, its"
            f" largest {high:.3g}; rounding in {dtype or values.dtype} explains {-allowed:.1e} of the largest"
        )
    return values.clamp(min=0.0)
