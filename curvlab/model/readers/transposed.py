"""Transposed convolutions in one, two and three dimensions, as linear maps at every output position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.model.readers.affine import Affine, of_kind, ones
from curvlab.protocols.reader import Specimens

KINDS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True)
class ConvTransposeReader(Affine):
    """Reads ``nn.ConvTranspose1d``, ``2d`` and ``3d`` with every option but ``groups``, batched or not.

    A row of inputs holds, for each input channel and kernel place, the input that this place carries to one
    output position, or 0.  The parameter is ``[i, o, *kernel]``, its block ``[o, i·kernel]``.

    ``inputs`` costs one copy of ``n s i`` scalars, where s counts output positions.
    """

    def refuses(self, module: nn.Module) -> str | None:
        refusal = of_kind(module, KINDS, "forward")
        if refusal is None and _conv(module).groups > 1 and self.part != "bias":
            return "a transposed convolution in groups has no layer reader"
        return self.refuses_part(module) if refusal is None else refusal

    def shape(self, module: nn.Module) -> torch.Size:
        conv = _conv(module)
        if self.part == "bias":
            return torch.Size((conv.out_channels, 1))
        i, _, *kernel = conv.weight.shape
        return torch.Size(
            (conv.out_channels, i * torch.Size(kernel).numel() + len(self.parameters(module)) - 1)
        )

    def given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = dict(zip(("input", "output_size"), args, strict=False)) | kwargs
        x, size = named["input"].detach(), named.get("output_size")
        axes = len(_conv(module).kernel_size)
        return x, None if size is None else tuple(int(k) for k in size)[-axes:]

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        return shape[:1] if len(shape) > 1 + len(_conv(module).kernel_size) else (1,)

    def inputs(self, module: nn.Module, x: Any) -> Float[Tensor, "n s i"]:
        conv = _conv(module)
        values, size = x
        values = _batched(conv, values)
        n, space = len(values), _output_size(conv, values, size)
        if self.part == "bias":
            return ones(values, n, torch.Size(space).numel())
        windows = _windows(conv, values, space)  # [n, c, *space, *kernel]
        axes = len(space)
        n_, c, *rest = range(windows.dim())
        rows = windows.permute(n_, *rest[:axes], c, *rest[axes:]).reshape(n, torch.Size(space).numel(), -1)
        return self.with_ones(module, rows)

    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Float[Tensor, "n s o"]:
        return _batched(_conv(module), g).flatten(2).mT

    def matrix(self, module: nn.Module, name: str, t: Tensor) -> Float[Tensor, "o c"]:
        return t.transpose(0, 1).flatten(1) if name == "weight" else t.unsqueeze(1)

    def unpacked(self, module: nn.Module, name: str, columns: Float[Tensor, "o c"]) -> Tensor:
        if name == "bias":
            return columns[:, 0]
        i, o, *kernel = _conv(module).weight.shape
        return columns.view(o, i, *kernel).transpose(0, 1)

    def specimens(self) -> Specimens:
        return [
            (nn.ConvTranspose1d(2, 3, 3, padding=1, stride=2), (torch.randn(4, 2, 3),)),
            (nn.ConvTranspose2d(2, 3, 2), (torch.randn(3, 2, 2, 2),)),
            (nn.ConvTranspose3d(1, 2, 2), (torch.randn(2, 1, 1, 2, 1),)),
        ]


def _conv(module: nn.Module) -> Transposed:
    assert isinstance(module, KINDS)
    return module


def _batched(conv: Transposed, x: Tensor) -> Tensor:
    """``[n, c, *space]``, of one example if there is no batch axis."""
    return x.unsqueeze(0) if x.dim() == 1 + len(conv.kernel_size) else x


def _output_size(conv: Transposed, x: Tensor, size: tuple[int, ...] | None) -> tuple[int, ...]:
    if size is not None:
        return size
    return tuple(
        (x.shape[2 + k] - 1) * int(conv.stride[k])
        - 2 * int(conv.padding[k])
        + int(conv.dilation[k]) * (int(conv.kernel_size[k]) - 1)
        + int(conv.output_padding[k])
        + 1
        for k in range(len(conv.kernel_size))
    )


def _windows(conv: Transposed, x: Tensor, space: tuple[int, ...]) -> Float[Tensor, "n c ..."]:
    """For each output position and kernel place the input there: zeros between inputs, then windows."""
    axes = len(space)
    spread = [(x.shape[2 + k] - 1) * int(conv.stride[k]) + 1 for k in range(axes)]
    wide = x.new_zeros(*x.shape[:2], *spread)
    places = (slice(None), slice(None), *(slice(None, None, int(step)) for step in conv.stride))
    wide[places] = x
    sides: list[int] = []  # last axis first, before and after
    for k in reversed(range(axes)):
        reach = int(conv.dilation[k]) * (int(conv.kernel_size[k]) - 1)
        before = reach - int(conv.padding[k])
        sides += [before, space[k] + reach - before - spread[k]]
    wide = F.pad(wide, sides)
    for k in range(axes):
        size, gap = int(conv.kernel_size[k]), int(conv.dilation[k])
        wide = wide.unfold(2 + k, gap * (size - 1) + 1, 1)[..., ::gap]
    return wide.flip(tuple(range(-axes, 0)))
