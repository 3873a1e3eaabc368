"""Blocks: which parameters are treated jointly, and how they are packed into one vector.

A layer block is a matrix ``[o, i]`` whose columns are those of one parameter after the other, as its reader
packs them (a bias is the last column).  Every other block is one parameter in its own shape; a complex one
has a last axis of two more, the real and the imaginary part, so that a vector is real throughout.  A
gradient is packed on entry and unpacked at the one write; between the two nobody reshapes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.linalg.work import work_dtype
from curvlab.protocols.pieces import cut, index_of_piece, whole
from curvlab.protocols.reader import LayerReader


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
    transposed matrix, as an embedding does that is tied to the output layer, each with its own reader: what
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

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "layout",
            BlockLayout({b.name: b.shape for b in self.members}, [b.name for b in self.members if b.one_hot]),
        )
        named = dict(self.model.named_parameters())
        mine = {whole(p): named[whole(p)] for b in self.members for p in b.parameters}
        object.__setattr__(self, "parameters", mine)
        modules = dict(self.model.named_modules())
        read = {layer: modules[layer] for b in self.members for layer, _, _ in b.readings()}
        object.__setattr__(self, "modules", read)

    def __getitem__(self, name: str) -> Block:
        return next(b for b in self.members if b.name == name)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def like(self) -> Tensor:
        """An empty tensor on the parameters' device, of the dtype of vectors: theirs, float32 at least."""
        mine = self.parameters.values() or self.model.parameters()  # none, where other processes hold all
        p = as_real(next(iter(mine))).detach()
        return p.new_empty(0, dtype=work_dtype(p.dtype))

    def value(self, name: str) -> Tensor:
        """A parameter, or the piece of one that a name means, sharing its memory."""
        p = self.parameters[whole(name)]
        return p if index_of_piece(name) is None else cut(name, p.detach())

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

    def slots(self, vector: BlockVector) -> dict[str, Tensor]:
        """Each parameter's part of ``vector``, as views in the parameter's own shape."""
        slots: dict[str, Tensor] = {}
        for block in self.members:
            slots.update(vector.parts(block.name, block.parameters, partial(self.split, block)))
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
            stop = start + self.columns(block, name)
            found[name] = block.reader.unpacked(module, mine, packed[:, start:stop])
            start = stop
        return found

    def columns(self, block: Block, parameter: str) -> int:
        """How many columns of a layer block a parameter, or a piece of one, has."""
        return as_real(self.value(parameter)).numel() // block.shape[0]

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
        return self.pack({n: p.detach() for n, p in self.parameters.items()})

    @torch.no_grad()
    def add_parameters_(self, vector: BlockVector, factor: float) -> None:
        """vector ← vector + factor · θ."""
        for name, slot in self.slots(vector).items():
            slot.add_(self.value(name), alpha=factor)

    @torch.no_grad()
    def subtract_(self, update: BlockVector, alpha: float) -> None:
        """θ ← θ − alpha · update."""
        for name, slot in self.slots(update).items():
            self.value(name).sub_(slot, alpha=alpha)

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
            self.model, members, untapped=self.untapped, unread=self.unread, explained=self.explained
        )

    @property
    def tapped(self) -> tuple[Block, ...]:
        """The blocks whose layers are listened to."""
        return tuple(b for b in self.members if b.is_layer and b.name not in self.untapped)
