"""How a layer is read: any layer becomes rows of inputs ``[.., i]`` and of output gradients ``[.., o]``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LayerReader(ABC):
    """Reads one kind of layer as a linear map ``[o, i]`` used at s positions of n examples.

    The layer's gradient must equal ``Σ_{n,s} grads[n,s]ᵀ inputs[n,s]``: the reader owns the bias
    column and any unfolding.  Where the outputs fall into k groups that read different inputs, a position
    has k rows of inputs, ``r = s k``, and this holds group by group: outputs j of k against row ``s k + j``.
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

    def groups(self, module: nn.Module) -> int:
        """How many equal groups of outputs read inputs of their own."""
        return 1

    def axes(self, module: nn.Module, shape: torch.Size) -> tuple[int, ...]:
        """Lengths of the axes of an input or output of this shape that may be that of the examples.

        The first of them is the first axis of rows; together they are all positions, or none but the first.
        """
        return shape[:1]

    @abstractmethod
    def inputs(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n r i"]:
        """The layer's input as rows, the bias column of ones included."""

    @abstractmethod
    def grads(self, module: nn.Module, g: Tensor) -> Float[Tensor, "n s o"]:
        """The gradient of the layer's output as rows."""

    def row(self, module: nn.Module, x: Tensor, g: Tensor, k: int) -> tuple[Float[Tensor, " i"], Tensor]:
        """What a call with input x and output gradient g adds to the weights of output k, and a bound on it.

        The bias column is left out.  The bound is that of Cauchy and Schwarz, in the units of rounding.
        """
        o = self.shape(module)[0]
        groups = self.groups(module)
        a, rows = self.inputs(module, x), self.grads(module, g).reshape(-1, o)[:, k]
        own = a.reshape(rows.shape[0], groups, -1)[:, k * groups // o]
        size = torch.linalg.vector_norm(rows) * torch.linalg.vector_norm(own)
        return (rows @ own)[: a.shape[-1] - (len(self.parameters(module)) - 1)], size


def products(inputs: Float[Tensor, "n r i"], grads: Float[Tensor, "*v n s o"]) -> Float[Tensor, "*v n o i"]:
    """``Σ_s grads[n,s]ᵀ inputs[n,s]``, group by group: what rows say of each example's gradient."""
    s, o = grads.shape[-2:]
    k = inputs.shape[-2] // s
    if k == 1:
        return torch.einsum("...nso,nsi->...noi", grads, inputs)
    *v, n, _, _ = grads.shape
    g, a = grads.reshape(*v, n, s, k, o // k), inputs.reshape(n, s, k, -1)
    return torch.einsum("...nskp,nski->...nkpi", g, a).flatten(-3, -2)


def total(inputs: Float[Tensor, "n r i"], grads: Float[Tensor, "n s o"]) -> Float[Tensor, "o i"]:
    """The same, summed over examples."""
    return products(inputs.flatten(0, 1).unsqueeze(0), grads.flatten(0, 1).unsqueeze(0))[0]
