"""Mode mixing: a complex matrix for each Fourier mode, on coefficients as pairs of reals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab_operators.paired_product import paired_product


class ModeMixing(nn.Module):
    """Multiplies the coefficients of mode k by the complex matrix ``weight[k]``, ``[o, i]``.

    Takes and returns coefficients as pairs of reals, ``[n, k, i, 2]`` and ``[n, k, o, 2]``: real part, then
    imaginary part.  So they may be in float16, which torch's complex numbers are for few operations.

    In float32 and float64 the product is one complex product per mode; in 16 bits it is four real products
    (``PairedProduct``).

    Weights are drawn from a normal distribution with variance 1/i, half of it in each part.
    """

    def __init__(self, modes: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.modes, self.inputs, self.outputs = modes, inputs, outputs
        drawn = torch.randn(modes, outputs, inputs, 2) * (0.5 / inputs) ** 0.5
        self.weight = nn.Parameter(torch.view_as_complex(drawn))

    def forward(self, x: Float[Tensor, "n k i 2"]) -> Float[Tensor, "n k o 2"]:
        """The mixed coefficients, in the dtype of x."""
        # autocast would take real products of wider numbers to 16 bits
        with torch.autocast(x.device.type, enabled=False):
            if x.dtype in (torch.float16, torch.bfloat16):
                w = torch.view_as_real(self.weight).to(x.dtype).transpose(1, 2)
                return paired_product(x.transpose(0, 1), w).transpose(0, 1)
            coefficients = torch.view_as_complex(x)
            mixed = torch.bmm(coefficients.transpose(0, 1), self.weight.to(coefficients.dtype).mT)
            return torch.view_as_real(mixed.transpose(0, 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ModeMixing:
        """As torch's, but a conversion to a real dtype converts the parts of complex numbers.

        ``module.to(torch.float64)`` would drop imaginary parts.  16 bits, for which torch has no complex
        products, leave complex numbers as they are.
        """

        def converted(t: Tensor) -> Tensor:
            if not t.is_complex():
                return fn(t)
            pairs = fn(torch.view_as_real(t))
            wide = pairs.dtype in (torch.float32, torch.float64)
            return torch.view_as_complex(pairs) if wide else t.to(pairs.device)

        super()._apply(converted, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"modes={self.modes}, inputs={self.inputs}, outputs={self.outputs}"
