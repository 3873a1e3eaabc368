"""How a layer is read: any layer becomes inputs ``[n, s, i]`` and output gradients ``[n, s, o]``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LayerAdapter(ABC):
    """Reads one kind of layer as a linear map ``[o, i]`` used at s positions of n examples.

    The layer's gradient must equal ``Σ_{n,s} grads[n,s]ᵀ inputs[n,s]``: the adapter owns the bias
    column and any unfolding.
    """

    @abstractmethod
    def refuses(self, module: nn.Module) -> str | None:
        """Why this layer cannot be read, or ``None``."""

    @abstractmethod
    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        """Names, within the module, of the parameters in packing order: weight, then bias."""

    @abstractmethod
    def shape(self, module: nn.Module) -> torch.Size:
        """``[o, i]`` of the packed block, the bias column included."""

    @abstractmethod
    def inputs(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n s i"]:
        """The layer's input as rows, the bias column of ones included."""

    @abstractmethod
    def grads(self, module: nn.Module, g: Tensor) -> Float[Tensor, "n s o"]:
        """The gradient of the layer's output as rows."""
