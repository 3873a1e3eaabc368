"""Scales and shifts of normalization layers, each a block ``[c, 1]``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.model.readers.affine import channels_first, of_kind, ones
from curvlab.protocols.reader import LayerReader, Specimens

#: layers whose features are the last axes
FEATURES = (nn.LayerNorm, nn.RMSNorm)
#: layers whose channels are the second axis
BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CHANNELS = (nn.GroupNorm, *BATCH, *INSTANCE)


@dataclass(frozen=True)
class NormReader(LayerReader):
    """Reads ``LayerNorm``, ``RMSNorm``, ``GroupNorm``, ``BatchNorm*`` and ``InstanceNorm*``.

    ``y = γ ∘ x̂ + β``: rows of β are the output gradients g, those of γ are ``g ∘ x̂``, with 1 as input.
    Their factor B is the Gauss–Newton matrix of the parameter itself, all correlations of channels in it.
    The normalized input x̂ is made again from the input, whose statistics are part of it.
    """

    coarse_sums = True  # kernels of norms do so on a CPU

    part: Literal["weight", "bias"] = "weight"

    def parts(self, module: nn.Module) -> tuple[LayerReader, ...]:
        return (self, replace(self, part="bias"))

    def refuses(self, module: nn.Module) -> str | None:
        if isinstance(module, nn.SyncBatchNorm):
            return "the statistics of SyncBatchNorm are those of several processes"
        refusal = of_kind(module, (*FEATURES, *CHANNELS), "forward")
        if refusal is None and getattr(module, self.part, None) is None:
            return f"the layer has no {self.part}"
        return refusal

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        return (self.part,)

    def shape(self, module: nn.Module) -> torch.Size:
        return torch.Size((getattr(module, self.part).numel(), 1))

    def given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().given(module, args, kwargs), module.training

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        if isinstance(module, FEATURES):
            return shape[: -len(module.normalized_shape)] or (1,)
        return shape[:1] if _is_batched(module, shape) else (1,)

    def inputs(self, module: nn.Module, x: Any) -> Float[Tensor, "n s 1"]:
        rows = _rows(module, x[0])
        return ones(rows, rows.shape[0], rows.shape[1])

    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Float[Tensor, "n s c"]:
        return _rows(module, g if self.part == "bias" else g * _normalized(module, *x))

    def specimens(self) -> Specimens:
        return [
            (nn.LayerNorm(4), (torch.randn(5, 3, 4),)),
            (nn.RMSNorm(4), (torch.randn(5, 4),)),
            (nn.GroupNorm(2, 4), (torch.randn(5, 4, 3),)),
            (nn.BatchNorm1d(4), (torch.randn(5, 4),)),
            (nn.InstanceNorm2d(3, affine=True), (torch.randn(4, 3, 2, 2),)),
        ]


def _is_batched(module: nn.Module, shape: torch.Size) -> bool:
    """Whether a layer of channels got a batch, or a single example as only instance norm takes it."""
    for axes, kind in enumerate(INSTANCE, 1):
        if isinstance(module, kind):
            return len(shape) == 2 + axes
    return True


def _rows(module: nn.Module, x: Tensor) -> Float[Tensor, "n s c"]:
    if isinstance(module, FEATURES):
        x = x.flatten(-len(module.normalized_shape))
        return x.reshape(x.shape[0], -1, x.shape[-1]) if x.dim() > 1 else x.view(1, 1, -1)
    return channels_first(x if _is_batched(module, x.shape) else x.unsqueeze(0))


def _normalized(module: nn.Module, x: Tensor, training: bool) -> Tensor:
    """x̂: the layer without its scale and shift."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(x, list(module.normalized_shape), eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    assert isinstance(module, (*BATCH, *INSTANCE))
    mean, var = module.running_mean, module.running_var
    own = training or mean is None
    if isinstance(module, INSTANCE):
        whole = x if _is_batched(module, x.shape) else x.unsqueeze(0)
        found = F.instance_norm(
            whole, *((None, None) if own else (mean, var)), use_input_stats=own, eps=module.eps
        )
        return found.reshape(x.shape)
    return F.batch_norm(x, *((None, None) if own else (mean, var)), training=own, eps=module.eps)
