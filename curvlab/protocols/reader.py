"""How a layer is read: any layer becomes rows of inputs ``[.., i]`` and of output gradients ``[.., o]``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.linalg.lookups import AnyRows, Lookups, dense_rows


class LayerReader(ABC):
    """Reads parameters of one kind of layer as a linear map ``[o, i]``, used at s positions of n examples.

    Its matrix is called the *block*.  The block's gradient must equal ``Σ_{n,s} grads[n,s]ᵀ inputs[n,s]``:
    the reader owns the bias column, any unfolding, and where each entry of a parameter stands in the block.
    A layer with parameters of several kinds has a reader for each (``parts``).

    Where the outputs fall into k groups that read different inputs, a position has k rows of inputs,
    ``r = s k``, and this holds group by group: outputs j of k against row ``s k + j``.
    """

    #: whether inputs are one-hot rows (``Lookups``): their factor is diagonal
    one_hot: ClassVar[bool] = False

    def parts(self) -> tuple[LayerReader, ...]:
        """Readers of the same kind of layer that are tried in turn, for the parameters that are left."""
        return (self,)

    @abstractmethod
    def refuses(self, module: nn.Module) -> str | None:
        """Why this layer cannot be read, ``""`` if it is of another kind, or ``None``: it can."""

    @abstractmethod
    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        """Names, within the module, of the parameters in packing order."""

    @abstractmethod
    def shape(self, module: nn.Module) -> torch.Size:
        """``[o, i]`` of the block, the bias column included."""

    def groups(self, module: nn.Module) -> int:
        """How many equal groups of outputs read inputs of their own."""
        return 1

    # one call

    def given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call is read from: tensors of the call's arguments, detached."""
        x: Tensor = args[0] if args else kwargs["input"]
        return x.detach()

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        """Lengths of the axes of the rows of a call, given its output's shape, that may be the examples'.

        The first of them is the first axis of rows; together they are all positions, or none but the first.
        """
        return shape[:1]

    def rows(self, module: nn.Module, x: Any, shape: torch.Size) -> int:
        """How many rows of gradients a call has, examples times positions."""
        return shape.numel() // self.shape(module)[0]

    @abstractmethod
    def inputs(self, module: nn.Module, x: Any) -> AnyRows:
        """The layer's input as rows ``[n, r, i]``, the bias column of ones included; or as ``Lookups``."""

    @abstractmethod
    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Float[Tensor, "n s o"]:
        """The gradient of the layer's output as rows; ``x`` is the call's input."""

    # packing

    def matrix(self, module: nn.Module, name: str, t: Tensor) -> Float[Tensor, "o c"]:
        """A tensor like the parameter of this name, as its c columns of the block."""
        return t.reshape(self.shape(module)[0], -1)

    def unpacked(self, module: nn.Module, name: str, columns: Float[Tensor, "o c"]) -> Tensor:
        """The inverse of ``matrix``, as a view."""
        shape = getattr(module, name).shape
        if columns.shape == shape:
            return columns
        return columns[:, 0] if len(shape) == 1 else columns.view(shape)

    # checking

    def row(self, module: nn.Module, x: Any, g: Tensor, k: int) -> tuple[Float[Tensor, " c"], Tensor]:
        """What a call with input x and output gradient g adds to row k of the first parameter's columns.

        And a bound on it: that of Cauchy and Schwarz, in the units of rounding.
        """
        o = self.shape(module)[0]
        groups = self.groups(module)
        a, rows = self.inputs(module, x), self.grads(module, g, x).reshape(-1, o)[:, k]
        if isinstance(a, Lookups):
            found = a.scattered(rows.unsqueeze(-1))[:, 0]
            return found, torch.linalg.vector_norm(rows) * rows.numel() ** 0.5
        own = a.reshape(rows.shape[0], groups, -1)[:, k * groups // o]
        size = torch.linalg.vector_norm(rows) * torch.linalg.vector_norm(own)
        columns = getattr(module, self.parameters(module)[0]).numel() // o
        return (rows @ own)[:columns], size


def as_dtype(x: Any, dtype: torch.dtype) -> Any:
    """What a call was read from with its floating tensors in another dtype."""
    if isinstance(x, tuple):
        return tuple(as_dtype(t, dtype) for t in x)
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def products(inputs: AnyRows, grads: Float[Tensor, "*v n s o"]) -> Float[Tensor, "*v n o i"]:
    """``Σ_s grads[n,s]ᵀ inputs[n,s]``, group by group: what rows say of each example's gradient."""
    inputs = dense_rows(inputs)
    s, o = grads.shape[-2:]
    k = inputs.shape[-2] // s
    if k == 1:
        return torch.einsum("...nso,nsi->...noi", grads, inputs)
    *v, n, _, _ = grads.shape
    g, a = grads.reshape(*v, n, s, k, o // k), inputs.reshape(n, s, k, -1)
    return torch.einsum("...nskp,nski->...nkpi", g, a).flatten(-3, -2)


def total(inputs: AnyRows, grads: Float[Tensor, "n s o"]) -> Float[Tensor, "o i"]:
    """The same, summed over examples."""
    if isinstance(inputs, Lookups):
        return inputs.scattered(grads).mT
    return products(inputs.flatten(0, 1).unsqueeze(0), grads.flatten(0, 1).unsqueeze(0))[0]


def squared(inputs: AnyRows, grads: Float[Tensor, "v n s o"], at_once: int) -> Float[Tensor, "o i"]:
    """``Σ_{v,n} (Σ_s g aᵀ)²`` elementwise; at most about ``at_once`` numbers beside the result.

    Lookups cost what their distinct rows do: those of one example and one index are added up first.
    """
    v, n, s, o = grads.shape
    i = inputs.shape[-1]
    if isinstance(inputs, Lookups):
        places = inputs.index + torch.arange(n, device=inputs.device).unsqueeze(1) * i
        found, inverse = places.reshape(-1).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        summed = grads.new_zeros(v, len(found), o).index_add_(1, inverse, grads.reshape(v, n * s, o))
        return grads.new_zeros(i, o).index_add_(0, found % i, summed.square_().sum(0)).mT
    if s == inputs.shape[1] == 1:
        return grads.square().sum(0)[:, 0].mT @ inputs[:, 0].square()
    sums = grads.new_zeros(o, i)
    step = max(1, at_once // (v * o * i))
    for k in range(0, n, step):
        sums += products(inputs[k : k + step], grads[:, k : k + step]).square().sum((0, 1))
    return sums
