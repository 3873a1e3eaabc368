"""Convolutions in one, two and three dimensions: linear maps used at every output position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad

from curvlab.model.readers.affine import Affine, of_kind, ones
from curvlab.protocols.reader import Specimens

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: by number of axes
WEIGHT_GRADIENTS: dict[int, Callable[..., Tensor]] = {
    1: grad.conv1d_weight,
    2: grad.conv2d_weight,
    3: grad.conv3d_weight,
}


@dataclass(frozen=True)
class ConvReader(Affine):
    """Reads ``nn.Conv1d``, ``Conv2d`` and ``Conv3d`` with every option, batched or not.

    A row of inputs is the patch under one output position, padding included, in the order of the
    flattened weight (channel, then kernel); then the bias column of ones.  Positions run in the order of
    the flattened output.

    With ``groups`` = k, group j of the outputs reads channels of its own, so a position has k rows of
    inputs.  All k share one block ``[o, i]``; its Kronecker factors are ``A = E[a aᵀ]`` over positions and
    groups, and B with the correlations between groups left in.  ``reduce`` averages inputs over positions
    and groups, as is usual.  One A for k different inputs is an approximation, even where KFAC is exact.

    ``inputs`` costs one copy of ``n s k i`` scalars, ``grads`` none.
    """

    def refuses(self, module: nn.Module) -> str | None:
        refusal = of_kind(module, KINDS, "forward", "_conv_forward")
        return self.refuses_part(module) if refusal is None else refusal

    def shape(self, module: nn.Module) -> torch.Size:
        o, *patch = _conv(module).weight.shape
        if self.part == "bias":
            return torch.Size((o, 1))
        return torch.Size((o, torch.Size(patch).numel() + len(self.parameters(module)) - 1))

    def groups(self, module: nn.Module) -> int:
        return 1 if self.part == "bias" else _conv(module).groups

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        batched = len(shape) > 1 + len(_conv(module).kernel_size)
        return shape[:1] if batched else (1,)

    def inputs(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n r i"]:
        conv = _conv(module)
        windows = _windows(conv, x)
        if self.part == "bias":
            n, *space = windows.shape[1 + len(conv.kernel_size) : -1]
            return ones(x, n, torch.Size(space).numel())
        i, patch = self.shape(module)[1], windows.shape[: 1 + len(conv.kernel_size)].numel()
        # coordinates first: the copy then runs along positions, as its source does, and neither the
        # rows of all examples nor their mean over positions need another one
        rows = windows.new_empty(i, windows.shape[len(conv.kernel_size) + 1 :].numel())
        rows[:patch].view(windows.shape).copy_(windows)
        rows[patch:] = 1.0
        n = windows.shape[1 + len(conv.kernel_size)]
        return rows.view(i, n, -1).permute(1, 2, 0)

    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Float[Tensor, "n s o"]:
        return _batched(_conv(module), g).flatten(2).mT

    def row(self, module: nn.Module, x: Tensor, g: Tensor, k: int) -> tuple[Float[Tensor, " i"], Tensor]:
        if self.part == "bias":
            return super().row(module, x, g, k)
        conv = _conv(module)
        x, g = _padded(conv, _batched(conv, x)), _batched(conv, g)[:, k : k + 1]
        c = conv.weight.shape[1]
        own = x.narrow(1, k * conv.groups // conv.out_channels * c, c)
        shape = (1, *conv.weight.shape[1:])
        found = WEIGHT_GRADIENTS[len(conv.kernel_size)](own, shape, g, conv.stride, 0, conv.dilation)
        size = torch.linalg.vector_norm(g) * torch.linalg.vector_norm(own) * conv.weight[0, 0].numel() ** 0.5
        return found.flatten(), size

    def specimens(self) -> Specimens:
        return [
            (nn.Conv1d(2, 3, 3, padding=1, stride=2), (torch.randn(4, 2, 5),)),
            (nn.Conv2d(2, 4, 2, groups=2), (torch.randn(3, 2, 3, 3),)),
            (nn.Conv3d(1, 2, 2), (torch.randn(2, 1, 2, 3, 2),)),
        ]


def _conv(module: nn.Module) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    assert isinstance(module, KINDS)
    return module


def _batched(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """``[n, c, *space]``, of one example if there is no batch axis."""
    return x.unsqueeze(0) if x.dim() == 1 + len(conv.kernel_size) else x


def _windows(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Patches of every example, output position and group, a view of the padded input:
    ``[c, *kernel, n, *space, k]``.
    """
    x, axes = _padded(conv, _batched(conv, x)), len(conv.kernel_size)
    for axis, (size, step, gap) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        x = x.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
    x = x.reshape(x.shape[0], conv.groups, -1, *x.shape[2:])  # [n, k, c, *space, *kernel]
    n, k, c, *rest = range(x.dim())
    return x.permute(c, *rest[axes:], n, *rest[:axes], k)


def _padded(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """The input as the kernel sees it."""
    if conv.padding == "valid":
        return x
    sides: list[int] = []  # last axis first, before and after
    for axis in reversed(range(len(conv.kernel_size))):
        if conv.padding == "same":
            total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [int(conv.padding[axis])] * 2
    if not any(sides):
        return x
    return F.pad(x, sides, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
