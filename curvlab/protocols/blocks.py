"""Blocks: which parameters are treated jointly, and how they are packed into one vector.

A layer block is a matrix ``[o, i]`` whose columns are those of one parameter after the other, as its reader
packs them (a bias is the last column).  Every other block is one parameter in its own shape; a complex one
has a last axis of two more, the real and the imaginary part, so that a vector is real throughout.  A
gradient is packed on entry and unpacked at the one write; no part reshapes between the two.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.linalg.columns import Columns, single
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.linalg.work import work_dtype
from curvlab.protocols.pieces import cut, index_of_piece, whole
from curvlab.protocols.reader import LayerReader
from curvlab.protocols.shards import Shards


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, with a last axis of two (a view mostly); any other is itself."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@dataclass(frozen=True)
class Block:
    """Parameters treated jointly.

    ``parameters`` are names in the model, in packing order; ``"weight[2:4]"`` names the rows 2 and 3 of a
    parameter, whose other rows are in other blocks (``piece``).  ``layers`` are the names of the
    modules that ``reader`` reads them from (more than one when a layer is tied); empty if the block is not
    read through a layer reader, and then ``reason`` says why.  ``transposed`` are modules that use the
    transposed matrix, each with its own reader, as an embedding does that is tied to the output layer.  What
    they add to the gradient is accounted for, but the block's statistics are those of ``layers`` alone.
    ``complex``: whether it holds a complex parameter.  A block without a reader then has a last axis of two
    for the real and the imaginary part; a reader says where these stand in its matrix.
    """

    name: str
    parameters: tuple[str, ...]
    shape: torch.Size
    layers: tuple[str, ...] = ()
    reader: LayerReader | None = None
    reason: str = ""
    complex: bool = False
    transposed: tuple[tuple[str, LayerReader], ...] = ()

    @property
    def is_layer(self) -> bool:
        """Whether layer statistics can be captured for it."""
        return self.reader is not None

    @property
    def one_hot(self) -> bool:
        """Whether the inputs of its layer are one-hot rows."""
        return self.reader is not None and self.reader.one_hot

    def refusal(self, *, tied: bool) -> str | None:
        """Why a method that reads layers leaves it to the fallback, or ``None``.

        ``tied``: whether it takes a block that other modules use transposed, whose statistics are partial.
        """
        if self.reader is None:
            return self.reason
        if self.transposed and not tied:
            others = ", ".join(f'"{name}"' for name, _ in self.transposed)
            return f"used transposed by {others}, which its statistics leave out; tied = true treats it"
        return None

    def readings(self) -> Iterator[tuple[str, LayerReader, bool]]:
        """Every module that uses it, with the reader, and whether it uses the transposed matrix."""
        if self.reader is not None:
            for layer in self.layers:
                yield layer, self.reader, False
            for layer, reader in self.transposed:
                yield layer, reader, True


@dataclass(frozen=True)
class Blocks:
    """A partition of some of a model's parameters, and the traffic between them and vectors."""

    model: nn.Module
    members: tuple[Block, ...]
    layout: BlockLayout = field(init=False)
    parameters: Mapping[str, nn.Parameter] = field(init=False)
    modules: Mapping[str, nn.Module] = field(init=False)
    #: layer blocks whose calls turned out not to explain their gradient
    untapped: set[str] = field(default_factory=set)
    #: why some of these were not even tried: their parameters are used in a way that no reader reads
    unread: dict[str, str] = field(default_factory=dict)
    #: ways from a layer's calls to its parameters that were seen to explain its gradient, by block
    explained: set[tuple[str, Hashable]] = field(default_factory=set)
    #: of a model that processes hold in shards; ``parameters`` are then ``DTensor``s
    shards: Shards | None = None
    #: where the parameters' parts stand in a vector: shape, strides, offset; of real ones alone
    _geometry: list[tuple[str, Any, Any, int]] = field(default_factory=list, init=False, compare=False)
    _names: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        named = dict(self.model.named_parameters())
        mine = {whole(p): named[whole(p)] for b in self.members for p in b.parameters}
        object.__setattr__(self, "parameters", mine)
        object.__setattr__(self, "_names", tuple(p for b in self.members for p in b.parameters))
        modules = dict(self.model.named_modules())
        read = {layer: modules[layer] for b in self.members for layer, _, _ in b.readings()}
        object.__setattr__(self, "modules", read)
        shapes = {b.name: b.shape for b in self.members}
        columns = {b.name: self.columns(b) for b in self.members}
        layout = BlockLayout(shapes, [b.name for b in self.members if b.one_hot], columns)
        object.__setattr__(self, "layout", layout)

    def __getitem__(self, name: str) -> Block:
        return next(b for b in self.members if b.name == name)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def like(self) -> Tensor:
        """An empty tensor on the parameters' device, of the dtype of vectors: theirs, float32 at least."""
        mine = self.parameters.values() or self.model.parameters()  # none, where other processes hold all
        p = as_real(next(iter(mine))).detach()
        return torch.empty(0, dtype=work_dtype(p.dtype), device=p.device)

    def uniform(self, dtype: torch.dtype) -> bool:
        """Whether every parameter has this dtype."""
        return all(p.dtype == dtype for p in self.parameters.values())

    def value(self, name: str) -> Tensor:
        """A parameter, or the piece of one that a name means, sharing its memory.

        For a sharded model, what was gathered for a step: a parameter of a block that this process owns.
        """
        if self.shards is not None:
            return cut(name, self.shards.gathered[whole(name)])
        p = self.parameters[whole(name)]
        return p if index_of_piece(name) is None else cut(name, p.detach())

    def values(self) -> list[Tensor]:
        """The values of all parameters of these blocks; whole ones, but where shards are gathered."""
        if self.shards is None:
            return list(self.parameters.values())
        return [self.value(name) for block in self.members for name in block.parameters]

    def leaf(self, name: str) -> nn.Parameter:
        """The tensor with a parameter's name that passes compute with."""
        return self.parameters[name] if self.shards is None else self.shards.leaves[name]

    def shape(self, name: str) -> torch.Size:
        """The shape of a parameter, or of a piece of one."""
        mine, index = self.parameters[whole(name)].shape, index_of_piece(name) or ()
        taken = [len(range(*part.indices(n))) for part, n in zip(index, mine, strict=False)]
        return torch.Size((*taken, *mine[len(taken) :]))

    def assembled(self, vector: BlockVector) -> dict[str, Tensor]:
        """``vector`` by whole parameter; views, but for a parameter in pieces, of which it may lack some."""
        found: dict[str, Tensor] = {}
        for name, slot in self.slots(vector).items():
            if index_of_piece(name) is None:
                found[name] = slot
                continue
            if whole(name) not in found:
                p = self.parameters[whole(name)]
                found[whole(name)] = torch.zeros_like(p, dtype=slot.dtype).detach()
            cut(name, found[whole(name)]).copy_(slot)
        return found

    def slots(self, vector: BlockVector) -> Mapping[str, Tensor]:
        """Each parameter's part of ``vector``, as views in the parameter's own shape."""
        return vector.parts(self._names, self._slots)

    def _slots(self, vector: BlockVector) -> Mapping[str, Tensor]:
        """Cut anew the first time, block by block; then by what the first time has found."""
        flat, mine = vector.flat, vector.layout == self.layout
        start = flat.storage_offset()
        if mine and self._geometry:
            return {n: flat.as_strided(shape, stride, start + at) for n, shape, stride, at in self._geometry}
        slots: dict[str, Tensor] = {}
        for block in self.members:
            slots.update(self.split(block, vector[block.name]))
        if mine and all(t.dtype == flat.dtype for t in slots.values()):
            for n, t in slots.items():
                self._geometry.append((n, t.shape, t.stride(), int(t.storage_offset() - start)))
        return slots

    def split(self, block: Block, packed: Tensor) -> dict[str, Tensor]:
        """A packed block as views in the shapes of its parameters.

        What a complex parameter gets is a complex view of its pairs of reals.
        """
        if block.reader is None:
            name = block.parameters[0]
            p = self.parameters[name]
            if p.is_complex():
                return {name: torch.view_as_complex(packed)}
            return {name: packed if packed.shape == p.shape else packed.view(p.shape)}
        found, start, module = {}, 0, self.modules[block.layers[0]]
        for name, mine in zip(block.parameters, block.reader.parameters(module), strict=True):
            stop = start + self.width(block, name)
            found[name] = block.reader.unpacked(module, mine, packed[:, start:stop])
            start = stop
        return found

    def width(self, block: Block, parameter: str) -> int:
        """How many columns of a layer block a parameter, or a piece of one, has; two for a complex number."""
        numbers = self.shape(parameter).numel() * (2 if self.parameters[whole(parameter)].is_complex() else 1)
        return numbers // block.shape[0]

    def columns(self, block: Block) -> tuple[Columns, ...]:
        """Which columns of a block are which of its parameters."""
        if block.reader is None:
            return single(block.parameters[0], block.shape, self.parameters[block.parameters[0]].dim())
        found, start = [], 0
        for name in block.parameters:
            stop = start + self.width(block, name)
            found.append(Columns(name, start, stop, len(self.shape(name)) > 1))
            start = stop
        return tuple(found)

    def matrix(self, block: Block, parameter: str, t: Tensor) -> Tensor:
        """A tensor like a whole parameter of a layer block, as its columns ``[o, c]`` of the block."""
        assert block.reader is not None, "blocks without a layer have no columns"
        module = self.modules[block.layers[0]]
        mine = block.reader.parameters(module)[block.parameters.index(parameter)]
        return block.reader.matrix(module, mine, cut(parameter, t))

    def pack(self, tensors: Mapping[str, Tensor | None]) -> BlockVector:
        """One vector from a tensor per whole parameter; a missing or ``None`` one counts as zero."""
        vector = self.layout.empty(like=self.like.detach())
        for name, slot in self.slots(vector).items():
            tensor = tensors.get(whole(name))
            if tensor is None:
                slot.zero_()
            else:
                slot.copy_(cut(name, tensor))
        return vector

    def read(self) -> BlockVector:
        """θ, a copy."""
        if self.shards is None:
            return self.pack({n: p.detach() for n, p in self.parameters.items()})
        return self.pack(self.shards.gathered)

    @torch.no_grad()
    def add_parameters_(self, vector: BlockVector, factor: float) -> None:
        """vector ← vector + factor · θ."""
        slots = self.slots(vector)
        if slots:
            torch._foreach_add_(list(slots.values()), [self.value(n) for n in slots], alpha=factor)

    @torch.no_grad()
    def subtract_(self, update: BlockVector, alpha: float) -> None:
        """θ ← θ − alpha · update."""
        slots = self.slots(update)
        if slots:
            torch._foreach_sub_([self.value(n) for n in slots], list(slots.values()), alpha=alpha)

    @torch.no_grad()
    def assign_(self, theta: BlockVector) -> None:
        """θ ← theta, bit for bit; for a rejected or rolled-back step."""
        for name, slot in self.slots(theta).items():
            self.value(name).copy_(slot)

    def leave(self, name: str, reason: str) -> None:
        """Read a block no more, nor those with other pieces of its parameters; ``reason`` says why."""
        for each in self.together([name]):
            self.untapped.add(each)
            self.unread.setdefault(each, reason)

    def together(self, names: Iterable[str]) -> list[str]:
        """These blocks and those with other pieces of their parameters, which are read or not as one."""
        wanted = {whole(p) for n in names for p in self[n].parameters if index_of_piece(p) is not None}
        others = (b.name for b in self.members if not wanted.isdisjoint(map(whole, b.parameters)))
        return sorted({*names, *others})

    def select(self, names: Sequence[str]) -> Blocks:
        """The blocks of these names alone."""
        wanted = set(names)
        if wanted >= set(self.layout.names):
            return self
        members = tuple(b for b in self.members if b.name in wanted)
        return Blocks(
            self.model,
            members,
            untapped=self.untapped,
            unread=self.unread,
            explained=self.explained,
            shards=self.shards,
        )

    @property
    def tapped(self) -> tuple[Block, ...]:
        """The blocks whose layers are listened to."""
        return tuple(b for b in self.members if b.is_layer and b.name not in self.untapped)
