"""Complex products of pairs of reals, for dtypes in which torch has no complex products."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class PairedProduct(torch.autograd.Function):
    """``x w`` for batches of complex matrices as pairs, ``[k, n, i, 2]`` and ``[k, i, o, 2]``.

    Four real products; each is added to its sum as it is made, so no more than the two sums are held beside
    the operands.  Keeps x and w.  Derivatives are such products again, to any order, forward and backward.
    Autocast is off inside, in derivatives too: it would take float16 to bfloat16.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        """``[k, n, o, 2]``."""
        with torch.autocast(x.device.type, enabled=False):
            (u, v), (a, b) = x.unbind(-1), w.unbind(-1)
            real = torch.bmm(u, a).baddbmm_(v, b, alpha=-1)
            imaginary = torch.bmm(u, b).baddbmm_(v, a)
            return torch.stack((real, imaginary), dim=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep both operands."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """``g wᴴ`` and ``xᴴ g``."""
        x, w = ctx.saved_tensors
        of_x, of_w = ctx.needs_input_grad
        return (
            paired_product(g, _adjoint(w)) if of_x else None,
            paired_product(_adjoint(x), g) if of_w else None,
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dw: Tensor | None) -> Tensor:
        """``dx w + x dw``."""
        x, w = ctx.saved_tensors
        of_x = None if dx is None else paired_product(dx, w)
        of_w = None if dw is None else paired_product(x, dw)
        if of_x is None or of_w is None:
            found = of_w if of_x is None else of_x
            assert found is not None, "torch asks for a tangent only where an operand has one"
            return found
        return of_x + of_w


def paired_product(x: Float[Tensor, "k n i 2"], w: Float[Tensor, "k i o 2"]) -> Float[Tensor, "k n o 2"]:
    """``x w``, batch by batch, in the dtype of both."""
    found: Tensor = PairedProduct.apply(x, w)  # type: ignore[no-untyped-call]
    return found


def _adjoint(t: Float[Tensor, "k n i 2"]) -> Float[Tensor, "k i n 2"]:
    """Transposed and conjugate."""
    return t.transpose(1, 2) * t.new_tensor((1.0, -1.0))
