"""How many flops an operation spends: torch's counter, with formulas for what it counts as nothing.

``torch.utils.flop_counter`` knows products of matrices, convolutions and attention.  Here are the others that
methods of curvature live on: products with vectors, outer products, products added in place, factorizations,
eigenvalues, triangular solves, Fourier transforms, and attention as it runs on the CPU.  A multiply-add is
two flops.  What iterates (eigenvalues, singular values) is counted as the textbooks estimate it (Golub and
Van Loan, 4th edition), so the numbers compare; they are no measurement.  Element-wise work is not counted.

This module imports torch alone: a benchmark may load the file by its path, and count an older version of
the package with the formulas of this one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

#: takes the arguments of an operation, tensors as their shapes, and what it returns as ``out_shape``
Formula = Callable[..., int]

_ATEN = torch.ops.aten


def flops(operation: Callable[[], Any]) -> int:
    """All that ``operation`` spends."""
    with Flops() as counted:
        operation()
    total: int = counted.total
    return total


def flops_by_kind(operation: Callable[[], Any]) -> dict[str, int]:
    """The same by the name of the kernel: ``{"addmm": 4096, "_linalg_eigh": 72000}``."""
    with Flops() as counted:
        operation()
    return dict(counted.by_kind)


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts by the formulas of torch and by ``FORMULAS``.

    ``torch.utils.flop_counter.FlopCounterMode(custom_mapping=FORMULAS)`` finds the same; it also follows
    modules, by hooks that keep activations alive, which would change a measurement of memory beside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_kind: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """The flops of every kind."""
        return sum(self.by_kind.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        packet = getattr(func, "overloadpacket", None)
        if torch.is_inference_mode_enabled() and packet not in FORMULAS and packet not in flop_registry:
            with self:  # there a composite operation comes whole
                whole = func.decompose(*args, **given)
            if whole is not NotImplemented:
                return whole
        returned = func(*args, **given)
        if packet in FORMULAS:
            shapes, named, out = tree_map(_shape, (args, given, returned))
            self.by_kind[_name(packet)] += FORMULAS[packet](*shapes, **named, out_shape=out)
        elif packet in flop_registry:
            self.by_kind[_name(packet)] += flop_registry[packet](*args, **given, out_val=returned)
        return returned


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value


def _name(packet: Any) -> str:
    return str(packet).removeprefix("aten.")


def _batch(shape: Any) -> int:
    """How many matrices are stacked."""
    return int(math.prod(shape[:-2]))


def _times_vector(a: Any, *args: Any, **kwargs: Any) -> int:
    """``A x``."""
    return 2 * int(math.prod(a))


def _plus_times_vector(y: Any, a: Any, *args: Any, **kwargs: Any) -> int:
    """``y + A x``."""
    return 2 * int(math.prod(a))


def _added(y: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """``Y + A B``, of one pair or of a stack."""
    return 2 * int(math.prod(a)) * int(b[-1])


def _plus_outer(y: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """``Y + a bᵀ``: a multiplication and an addition per entry."""
    return 2 * int(a[0]) * int(b[0])


def _outer(a: Any, b: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    """A multiplication that spans axes, as ``torch.outer`` is made of; nothing for an element-wise one."""
    if not (isinstance(a, (tuple, list)) and isinstance(b, (tuple, list))):  # by a number
        return 0
    made = int(math.prod(out_shape))
    return made if made > max(math.prod(a), math.prod(b)) else 0


def _eigh(a: Any, uplo: Any = "L", vectors: bool = True, **kwargs: Any) -> int:
    """9 n³ with eigenvectors, 4/3 n³ without (§8.3)."""
    cubed = int(a[-1]) ** 3
    return _batch(a) * (9 * cubed if vectors else 4 * cubed // 3)


def _svd(a: Any, full: bool = False, vectors: bool = True, **kwargs: Any) -> int:
    """With vectors 6 m n² + 20 n³, without 4 m n² − 4/3 n³, where m ≥ n (figure 8.6.1)."""
    m, n = max(int(a[-2]), int(a[-1])), min(int(a[-2]), int(a[-1]))
    return _batch(a) * (6 * m * n**2 + 20 * n**3 if vectors else 4 * m * n**2 - 4 * n**3 // 3)


def _cholesky(a: Any, *args: Any, **kwargs: Any) -> int:
    """n³/3 (§4.2)."""
    return _batch(a) * (int(a[-1]) ** 3 // 3)


def _cholesky_inverse(a: Any, *args: Any, **kwargs: Any) -> int:
    """The inverse of a factor and its Gram matrix, 2/3 n³."""
    return _batch(a) * (2 * int(a[-1]) ** 3 // 3)


def _cholesky_solve(b: Any, a: Any, *args: Any, **kwargs: Any) -> int:
    """Two triangular solves."""
    return 2 * _batch(b) * int(a[-1]) ** 2 * int(b[-1])


def _triangular_solve(a: Any, b: Any, *args: Any, left: bool = True, **kwargs: Any) -> int:
    """n² per right-hand side (§3.1)."""
    columns = int(b[-1]) if left else int(b[-2])
    return max(_batch(a), _batch(b)) * int(a[-1]) ** 2 * columns


def _lu(a: Any, *args: Any, **kwargs: Any) -> int:
    """2/3 n³ (§3.2)."""
    return _batch(a) * (2 * int(a[-1]) ** 3 // 3)


def _inverse(a: Any, *args: Any, **kwargs: Any) -> int:
    """2 n³ (§3.4)."""
    return _batch(a) * 2 * int(a[-1]) ** 3


def _solve(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """A factorization and two triangular solves per right-hand side."""
    columns = int(b[-1]) if len(b) == len(a) else 1
    return _lu(a) + _batch(a) * 2 * int(a[-1]) ** 2 * columns


def _lu_solve(lu: Any, pivots: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """Two triangular solves per right-hand side."""
    return max(_batch(lu), _batch(b)) * 2 * int(lu[-1]) ** 2 * int(b[-1])


def _qr(a: Any, *args: Any, **kwargs: Any) -> int:
    """Factor and basis, each 2 m k² − 2/3 k³ with k the shorter side (§5.2)."""
    m, n = max(int(a[-2]), int(a[-1])), min(int(a[-2]), int(a[-1]))
    return _batch(a) * 2 * (2 * m * n**2 - 2 * n**3 // 3)


def _least_squares(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """By QR: 2 m n² − 2/3 n³, and 4 m n per right-hand side."""
    m, n = max(int(a[-2]), int(a[-1])), min(int(a[-2]), int(a[-1]))
    columns = int(b[-1]) if len(b) == len(a) else 1
    return _batch(a) * (2 * m * n**2 - 2 * n**3 // 3 + 4 * m * n * columns)


def _transform(x: Any, dim: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    """A Fourier transform: 5 N log₂ N flops along each axis if complex, half if real on one side."""
    wide = [max(int(p), int(q)) for p, q in zip(x, out_shape, strict=True)]
    whole = math.prod(wide)
    share = 5.0 if tuple(x) == tuple(out_shape) else 2.5
    return round(sum(share * whole * math.log2(max(wide[d], 2)) for d in dim))


def _attention(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    """``softmax(q kᵀ) v``: two products."""
    return 2 * int(math.prod(q[:-1])) * int(k[-2]) * (int(q[-1]) + int(v[-1]))


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
    """Scores again, and four products for what depends on them: 2½ times the way there."""
    return 5 * _attention(q, k, v) // 2


#: kernels that torch's counter takes for free, and what they cost; keys are operators of ``torch.ops.aten``
FORMULAS: Mapping[Any, Formula] = {
    _ATEN.mv: _times_vector,
    _ATEN.dot: _times_vector,
    _ATEN.vdot: _times_vector,
    _ATEN.addmv: _plus_times_vector,
    _ATEN.addmv_: _plus_times_vector,
    _ATEN.addmm_: _added,
    _ATEN.baddbmm_: _added,
    _ATEN.addbmm: _added,
    _ATEN.addbmm_: _added,
    _ATEN.addr: _plus_outer,
    _ATEN.addr_: _plus_outer,
    _ATEN.mul: _outer,
    _ATEN._linalg_eigh: _eigh,
    _ATEN._linalg_svd: _svd,
    _ATEN.linalg_cholesky_ex: _cholesky,
    _ATEN.cholesky_inverse: _cholesky_inverse,
    _ATEN.cholesky_solve: _cholesky_solve,
    _ATEN.linalg_solve_triangular: _triangular_solve,
    _ATEN.linalg_inv_ex: _inverse,
    _ATEN.linalg_lu_factor_ex: _lu,
    _ATEN.linalg_lu_solve: _lu_solve,
    _ATEN._linalg_solve_ex: _solve,
    _ATEN.linalg_qr: _qr,
    _ATEN.linalg_lstsq: _least_squares,
    _ATEN._fft_r2c: _transform,
    _ATEN._fft_c2r: _transform,
    _ATEN._fft_c2c: _transform,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
