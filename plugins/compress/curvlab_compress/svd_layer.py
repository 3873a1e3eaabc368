"""Linear layers and convolutions as ``U diag(s) Vᵀ``, computed as two layers with a scale between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: which matrix of a convolution's weight ``[n, c, h, w]`` is factorized: ``[n, c h w]`` or ``[c h, n w]``
Split = Literal["channel", "spatial"]


class Scale(nn.Module):
    """Multiplies channels, the axis after the examples or the last one, by ``weight``."""

    def __init__(self, weight: Float[Tensor, " r"], axes_behind: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.axes_behind = axes_behind

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(-1, *(1,) * self.axes_behind)


class SvdLayer(nn.Module):
    """``left(scale(right(x)))``: Vᵀ, diag(s) and U of a layer's matrix, each an ordinary layer.

    ``right`` has no bias; ``left`` has that of the layer.  The sign of an entry of s belongs to its column
    of U.  For a convolution, ``split`` says which matrix it is; under "spatial" ``right`` works along the
    height, with the stride and padding of the height, and ``left`` along the width.
    """

    right: Any
    left: Any
    scale: Scale

    def __init__(self, right: nn.Module, scale: Scale, left: nn.Module, split: Split) -> None:
        super().__init__()
        self.right, self.scale, self.left, self.split = right, scale, left, split

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.left(self.scale(self.right(x)))
        return found

    def factors(self) -> Factors:
        """Present values of U, s and V."""
        return factors_of(self.right.weight, self.scale.weight, self.left.weight, self.split)


@dataclass(frozen=True)
class Factors:
    """U, s and V of a layer's matrix ``U diag(s) Vᵀ``."""

    U: Float[Tensor, "m r"]
    s: Float[Tensor, " r"]
    V: Float[Tensor, "n r"]

    def matrix(self) -> Float[Tensor, "m n"]:
        """The layer's matrix."""
        return (self.U * self.s) @ self.V.mT


def factors_of(right: Tensor, s: Tensor, left: Tensor, split: Split) -> Factors:
    """U, s and V out of the weights of the two layers; views."""
    V = right.flatten(1).mT
    if split == "spatial":  # left [n, r, 1, w] -> [n w, r]
        return Factors(left.movedim(1, -1).reshape(-1, len(s)), s, V)
    return Factors(left.flatten(1), s, V)


def decomposable(module: nn.Module, split: Split) -> bool:
    """Whether a module is a layer that this file factorizes: of torch's own class, not in groups.

    Padding must be by zeros where the split is spatial, and the kernel of two dimensions.
    """
    if type(module) is nn.Linear:
        return True
    if type(module) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d) or module.groups != 1:
        return False
    plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and module.padding != "same"
    return split == "channel" or plain


@torch.no_grad()
def decomposed(module: nn.Module, split: Split) -> SvdLayer:
    """The layer in factors of full rank ``min(m, n)``, equal to it up to rounding.

    Costs one singular value decomposition, about ``m n min(m, n)`` flops times ten.
    """
    if isinstance(module, nn.Linear):
        U, s, V = _svd(module.weight)
        right, left = _linear(V.mT, None), _linear(U, module.bias)
        return SvdLayer(right, Scale(s, 0), left, "channel")
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if split == "channel":
        U, s, V = _svd(module.weight.flatten(1))
        r, behind = len(s), module.weight.dim() - 2
        first = _conv(module, V.mT.reshape(r, *module.weight.shape[1:]))
        second = type(module)(r, module.out_channels, 1, bias=module.bias is not None)
        _fill(second, U.reshape(*U.shape, *(1,) * behind), module.bias)
        return SvdLayer(first, Scale(s, behind), second, split)
    n, c, h, w = module.weight.shape
    # matrix [n w, c h]: U has a row for each output channel and column of the kernel
    U, s, V = _svd(module.weight.permute(0, 3, 1, 2).reshape(n * w, c * h))
    assert isinstance(module, nn.Conv2d)
    first, second = _halves(module, len(s))
    _fill(first, V.mT.reshape(len(s), c, h, 1), None)
    _fill(second, U.reshape(n, w, len(s)).permute(0, 2, 1).unsqueeze(2), module.bias)
    return SvdLayer(first, Scale(s, 2), second, split)


def svd_layers(model: nn.Module) -> Iterator[tuple[str, SvdLayer]]:
    """Every factorized layer of a model, by name."""
    for name, module in model.named_modules():
        if isinstance(module, SvdLayer):
            yield name, module


def _svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    return U.contiguous(), s, Vh.mT.contiguous()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _fill(layer, weight, bias)
    return layer


def _conv(like: nn.Conv1d | nn.Conv2d | nn.Conv3d, weight: Tensor) -> nn.Module:
    """A convolution over the same windows, with other outputs."""
    made = type(like)(
        like.in_channels,
        weight.shape[0],
        like.kernel_size,  # type: ignore[arg-type]
        stride=like.stride,  # type: ignore[arg-type]
        padding=like.padding,  # type: ignore[arg-type]
        dilation=like.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=like.padding_mode,
    )
    _fill(made, weight, None)
    return made


def _halves(like: nn.Conv2d, r: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Convolutions along the height, to r channels, and along the width."""
    (h, w), (sh, sw), (dh, dw) = like.kernel_size, like.stride, like.dilation
    ph, pw = (0, 0) if isinstance(like.padding, str) else like.padding
    first = nn.Conv2d(like.in_channels, r, (h, 1), (sh, 1), (ph, 0), (dh, 1), bias=False)
    second = nn.Conv2d(r, like.out_channels, (1, w), (1, sw), (0, pw), (1, dw), bias=like.bias is not None)
    return first, second


def _fill(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer these parameters, in their own dtype and on their own device."""
    layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
