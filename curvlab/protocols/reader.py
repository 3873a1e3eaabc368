"""How a layer is read: any layer becomes rows of inputs ``[.., i]`` and of output gradients ``[.., o]``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.linalg.lookups import AnyRows, Lookups, dense_rows
from curvlab.protocols.pieces import cut, piece, whole

#: layers, each with arguments to call it on
Specimens = Iterable[tuple[nn.Module, tuple[Any, ...]]]


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

    #: whether its uses are captured inside a call of the module (``CompositeReader``)
    composite: ClassVar[bool] = False

    #: whether it reads complex parameters, as real and imaginary parts, both of which stand in its block
    reads_complex: ClassVar[bool] = False

    #: whether torch may add up its gradient row by row in 16 bits, where outputs have 16: then a gradient is
    #: known to come from elsewhere only if it is larger than all rows together
    coarse_sums: ClassVar[bool] = False

    def parts(self, module: nn.Module) -> tuple[LayerReader, ...]:
        """Readers of a layer of this kind that are tried in turn, for the parameters that are left."""
        return (self,)

    @abstractmethod
    def refuses(self, module: nn.Module) -> str | None:
        """Why this layer cannot be read, ``""`` if it has another kind, or ``None``: it can."""

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

    def specimens(self) -> Specimens:
        """Small layers of this kind, each with arguments to call it on: what the conformance suite reads.

        A layer for each option that changes how it computes, inputs with several positions among them.
        """
        return ()

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
        first = self.parameters(module)[0]
        value = cut(first, module.get_parameter(whole(first)))
        columns = value.numel() * (2 if value.is_complex() else 1) // o
        return (rows @ own)[:columns], size


@dataclass(frozen=True)
class Projection:
    """A linear map inside a module: names of its weight and bias, and which rows of them, or all.

    A name may lead into a submodule, as ``"out_proj.weight"`` does.  A bias without a weight is that of a
    weight that is frozen, or tied elsewhere.
    """

    weight: str | None
    bias: str | None = None
    rows: tuple[int, int] | None = None

    def names(self) -> tuple[str, ...]:
        """The names of its parameters, or pieces of parameters, in packing order."""
        found = tuple(n for n in (self.weight, self.bias) if n is not None)
        return found if self.rows is None else tuple(piece(n, *self.rows) for n in found)


@dataclass(frozen=True)
class CompositeReader(LayerReader):
    """Reads a module that uses several matrices in one call, each by ``F.linear``: a block for each.

    While rows are wanted, the module's call is computed again by ``rerun`` after the module itself.  Outputs
    keep the module's values and get the gradient of the second computation.  There each use of a parameter by
    ``F.linear``, as a scale, or as a shift is seen.  Costs the forward pass of the module once more.
    """

    composite: ClassVar[bool] = True
    #: whether ``rerun`` computes the call again; if not, uses are seen in the module's own call
    reruns: ClassVar[bool] = True
    projection: Projection | None = None

    @abstractmethod
    def projections(self, module: nn.Module) -> tuple[Projection, ...]:
        """The linear maps of a module that is not refused; together they hold whole parameters."""

    @abstractmethod
    def rerun(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's outputs once more, by torch functions on the module's own parameters."""

    def parts(self, module: nn.Module) -> tuple[LayerReader, ...]:
        if self.refuses(module) is not None:
            return (self,)
        found: list[LayerReader] = []
        for p in self.projections(module):
            found.append(replace(self, projection=p))
            if p.weight is not None and p.bias is not None:
                found.append(replace(self, projection=replace(p, bias=None)))
                found.append(replace(self, projection=replace(p, weight=None)))
        return tuple(found)

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        return () if self.projection is None else self.projection.names()

    def shape(self, module: nn.Module) -> torch.Size:
        first, *others = (cut(n, module.get_parameter(whole(n))) for n in self.parameters(module))
        return torch.Size((first.shape[0], first.shape[1:].numel() + len(others)))

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        return shape[:-1] or (1,)

    def inputs(self, module: nn.Module, x: Tensor) -> AnyRows:
        rows = features_last(x)
        assert self.projection is not None, "a part of a composite has a projection"
        if self.projection.weight is None:
            return rows.new_ones(1, 1, 1).expand(*rows.shape[:2], 1)
        if self.projection.bias is None:
            return rows
        return torch.cat((rows, rows.new_ones(*rows.shape[:2], 1)), dim=-1)

    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Float[Tensor, "n s o"]:
        return features_last(g)

    def unpacked(self, module: nn.Module, name: str, columns: Float[Tensor, "o c"]) -> Tensor:
        return columns[:, 0] if module.get_parameter(whole(name)).dim() == 1 else columns


def features_last(x: Tensor) -> Float[Tensor, "n s d"]:
    """``[n, *, d]`` as rows; one example without a batch axis is a batch of one."""
    if x.dim() == 1:
        return x.view(1, 1, -1)
    return x.reshape(x.shape[0], -1, x.shape[-1])


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
