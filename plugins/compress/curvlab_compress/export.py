"""A model of factorized layers as one of torch's plain layers."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn

from curvlab_compress.svd_layer import SvdLayer, svd_layers

#: "dense" multiplies out; "low-rank" keeps two layers without the singular values that are zero
Form = Literal["dense", "low-rank"]


def exported(model: nn.Module, form: Form = "dense") -> nn.Module:
    """A copy of ``model`` in which every ``SvdLayer`` is made of torch's own layers.

    "dense": one layer of the shape that it had before, with the weight ``U diag(s) Vᵀ``.  "low-rank": two
    layers of the rank that is left, with √|s| on each; at least rank 1.  Outputs are equal up to rounding.
    ``model`` itself stays as it is.
    """
    made = copy.deepcopy(model)
    for name, layer in list(svd_layers(made)):
        plain = _dense(layer) if form == "dense" else _low_rank(layer)
        if not name:
            return plain
        made.set_submodule(name, plain)
    return made


def kept(layer: SvdLayer) -> int:
    """How many singular values of a layer are not zero."""
    return int((layer.scale.weight != 0).sum())


def weights_of(model: nn.Module) -> tuple[int, int]:
    """Numbers in the weights of factorized layers: as one matrix each, and as two of the ranks that are left.

    Biases are not counted; a layer whose two matrices would be larger than the one counts as the one.
    """
    whole = parts = 0
    for _, layer in svd_layers(model):
        f = layer.factors()
        (m, _), (n, _), r = f.U.shape, f.V.shape, max(kept(layer), 1)
        whole, parts = whole + m * n, parts + min(r * (m + n), m * n)
    return whole, parts


@torch.no_grad()
def _dense(layer: SvdLayer) -> nn.Module:
    W, right, left = layer.factors().matrix(), layer.right, layer.left
    if isinstance(right, nn.Linear):
        made: nn.Module = nn.Linear(W.shape[1], W.shape[0], bias=left.bias is not None)
    elif layer.split == "channel":
        made = _like(right, left, right.kernel_size, right.stride, right.padding, right.dilation)
        W = W.reshape(left.out_channels, *right.weight.shape[1:])
    else:
        both = [
            (getattr(right, field)[0], getattr(left, field)[1])
            for field in ("kernel_size", "stride", "padding", "dilation")
        ]
        made = _like(right, left, *both)
        (h, w), n, c = both[0], left.out_channels, right.in_channels
        W = W.reshape(n, w, c, h).permute(0, 2, 3, 1)
    return _filled(made, W.contiguous(), left.bias)


@torch.no_grad()
def _low_rank(layer: SvdLayer) -> nn.Module:
    s = layer.scale.weight
    rows = torch.nonzero(s).flatten() if kept(layer) else s.new_zeros(1, dtype=torch.int64)
    root = s[rows].abs().sqrt()
    right, left = copy.deepcopy(layer.right), copy.deepcopy(layer.left)
    V, U = right.weight[rows], left.weight.index_select(1, rows)
    _filled(right, V * root.view(-1, *(1,) * (V.dim() - 1)), None)
    _filled(left, U * (root * s[rows].sign()).view(1, -1, *(1,) * (U.dim() - 2)), left.bias)
    for module, name in ((right, "out"), (left, "in")):
        kind = "features" if isinstance(module, nn.Linear) else "channels"
        setattr(module, f"{name}_{kind}", len(rows))
    return nn.Sequential(right, left)


def _like(right: Any, left: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> nn.Module:
    """A convolution of these windows, from the inputs of ``right`` to the outputs of ``left``."""
    kind: type = type(right)
    made: nn.Module = kind(
        right.in_channels,
        left.out_channels,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        bias=left.bias is not None,
        padding_mode=right.padding_mode,
    )
    return made


def _filled(layer: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.detach().clone())
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    made: nn.Module = layer
    return made
