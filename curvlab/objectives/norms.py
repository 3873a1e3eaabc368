"""Normalization as a composition of means and products, for second derivatives by forward mode.

torch differentiates ``layer_norm`` and ``instance_norm`` once by forward mode and twice by reverse mode.  One
pass more returns wrong numbers, without an error (torch 2.13; ``tests/objectives/test_norms.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class ComposedNorms(TorchFunctionMode):
    """Inside, normalization over an example's own entries is composed, so that all its derivatives exist."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in (F.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **options)
        if func is F.instance_norm and options.get("use_input_stats", True):
            return _instance_norm(*args, **options)
        return func(*args, **options)


def _layer_norm(
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    u = _normalized(x, tuple(range(-len(normalized_shape), 0)), eps)
    u = u if weight is None else u * weight
    return u if bias is None else u + bias


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    u = _normalized(input, tuple(range(2, input.dim())), eps)
    channels = (1, -1, *(1,) * (input.dim() - 2))
    u = u if weight is None else u * weight.view(channels)
    return u if bias is None else u + bias.view(channels)


def _normalized(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    off = x - x.mean(axes, keepdim=True)
    return off * (off.square().mean(axes, keepdim=True) + eps).rsqrt()
