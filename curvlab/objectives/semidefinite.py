"""Square roots of Hessians that are positive semi-definite, and the refusal of those that are not."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.linalg import factorizations

#: numbers of a micro-batch's dense Hessians: 1 GiB in float64
LARGEST = 2**27

#: eigenvalues that rounding makes negative, in units of the dtype's: of the largest, or of 1 if that is more
ROUNDING = 1e3


def eigen(
    hessians: Float[Tensor, "r c c"], what: str, row: str
) -> tuple[Float[Tensor, "r c c"], Float[Tensor, "r c"]]:
    """Eigenvectors (columns), and square roots of eigenvalues, largest last; computed in float64.

    Raises ``ConfigError``, which names the loss (``what``) and the row with the smallest eigenvalue, if that
    is negative beyond rounding.  NaN where entries are not finite.
    """
    if not bool(hessians.isfinite().all()):
        nothing = torch.full_like(hessians, torch.nan)
        return nothing, nothing[..., 0]
    values, vectors = factorizations.double_eigh(0.5 * (hessians + hessians.mT))
    require_not_negative(values, hessians.dtype, what, row)
    return vectors.to(hessians.dtype), values.clamp_(min=0.0).sqrt_().to(hessians.dtype)


def require_room(rows: int, c: int, what: str) -> None:
    """Raise ``ConfigError`` if so many Hessians ``[c, c]`` are too large to be formed."""
    if rows * c * c > LARGEST:
        raise ConfigError(
            Fault(
                f"{what}: exact and sampled labels need its Hessian in the outputs, by autograd {rows:,}"
                f" matrices of {c:,} x {c:,}; at most {LARGEST:,} numbers are formed",
                hint="use a loss whose factor is known (curvlab parts loss), a smaller micro_batch,"
                ' or labels = "data"',
            )
        )


def require_not_negative(values: Float[Tensor, "r c"], dtype: torch.dtype, what: str, row: str) -> None:
    """Raise ``ConfigError`` for an eigenvalue that is negative beyond the rounding of ``dtype``.

    Values of a diagonal Hessian are its eigenvalues.
    """
    if not values.numel():
        return
    smallest = values.amin(1)
    worst = int(smallest.argmin())
    allowed = ROUNDING * torch.finfo(dtype).eps * max(1.0, float(values.abs().max()))
    if float(smallest[worst]) < -allowed:
        raise indefinite(what, f"{row} {worst}: smallest eigenvalue {float(smallest[worst]):.3g}")


def require_not_descending(
    v: Float[Tensor, "r c"], product: Float[Tensor, "r c"], what: str, row: str
) -> None:
    """Raise ``ConfigError`` if ``⟨v, H v⟩`` is negative beyond rounding for some row."""
    if not v.numel():
        return
    along, size = (v * product).sum(1), v.square().sum(1)
    allowed = ROUNDING * torch.finfo(v.dtype).eps * (size + (size * product.square().sum(1)).sqrt())
    wrong = along < -allowed
    if bool(wrong.any()):
        worst = int(wrong.nonzero()[0])
        at = float(along[worst] / size[worst])
        raise indefinite(what, f"{row} {worst}: an eigenvalue of at most {at:.3g}")


def indefinite(what: str, where: str) -> ConfigError:
    """The error for a Hessian with a negative eigenvalue."""
    return ConfigError(
        Fault(
            f"{what}: its Hessian in the outputs is not positive semi-definite ({where});"
            " curvature of this loss cannot be a Gauss-Newton matrix",
            hint="give the loss a factor of its own (RowLoss.factor, for example of the Fisher information),"
            ' use a loss that is convex in the outputs, or set labels = "data" if the method has that knob',
        )
    )
