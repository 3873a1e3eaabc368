"""Partitions: every trainable parameter in exactly one block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from curvlab.errors import ConfigError, Fault
from curvlab.model.readers.shipped import SHIPPED
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.pieces import whole
from curvlab.protocols.reader import LayerReader
from curvlab.protocols.shards import Shards

#: why a block is a complex parameter by itself
COMPLEX = "complex parameter"

#: why a parameter is in no block
NO_ELEMENTS = "no elements"

#: why a block that could be read is not
UNREAD = "the method reads no statistics of this layer"


def partition(
    model: nn.Module,
    joins: Callable[[str], bool],
    known: Blocks | None = None,
    reads: Callable[[str], bool] = lambda layer: True,
    readers: Sequence[LayerReader] = SHIPPED,
    shards: Shards | None = None,
) -> Blocks:
    """Blocks over all parameters of ``model`` that require a gradient, in the model's order.

    A layer that one of ``readers`` can read, and whose name ``joins`` wants as one block, is a block, or one
    for each reader where several share its parameters; a parameter that is read in no way is a block by
    itself, with the reason.  Where the method does not say that it ``reads`` statistics, vectors are left as
    they are.  The first reader in order that can read a parameter does.  A parameter
    without elements is in no block (``empty`` lists those).  Complex parameters are blocks of pairs of
    reals, and come first: a complex view of a real buffer must begin at an even offset.
    Blocks that are ``known`` stay as they are, and parameters that are in none of them are added; only a
    layer of which a part was frozen becomes one block once it can be.
    ``shards`` are those of a model that processes hold in shards (``shards_of``).
    Raises ``ConfigError`` for a lazy layer that has no shape yet.
    """
    _require_shapes(model)
    found = _Reading(model, readers)
    members: list[Block] = [] if known is None else list(known.members)
    taken: set[int] = set() if known is None else {id(p) for p in known.parameters.values()}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if _trained(p) and id(p) not in taken]
        if not own:
            continue
        read = joins(name or "model")
        inner = [p for p in module.parameters() if _trained(p) and id(p) not in taken]  # a composite's, too
        mine = [b for b in found.blocks(name, module) if found.reads_any(b, inner)] if read else []
        if not reads(name or "model"):
            mine, read = [b for b in mine if b.shape[1] > 1], False
        if known is not None:
            parts = {p for b in mine for p in b.parameters}
            members = [b for b in members if not parts.issuperset(b.parameters)]
        members.extend(mine)
        taken.update(id(found.parameters[whole(p)]) for b in mine for p in b.parameters)
        left = [p for p in own if id(p) not in taken]
        taken.update(map(id, left))
        members.extend(_alone(found.names[id(p)], p, found.reason(name, module, p, read)) for p in left)
    members.sort(key=lambda block: not block.complex)
    if known is None:
        return Blocks(model, tuple(members), shards=shards)
    return Blocks(
        model,
        tuple(members),
        untapped=known.untapped,
        unread=known.unread,
        explained=known.explained,
        shards=known.shards,
    )


@dataclass
class _Reading:
    """What the readers can make of a model's layers."""

    model: nn.Module
    readers: Sequence[LayerReader]
    parameters: dict[str, nn.Parameter] = field(init=False)
    names: dict[int, str] = field(init=False)
    #: modules that hold a parameter, by its identity
    owners: dict[int, list[tuple[str, nn.Module]]] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = dict(self.model.named_parameters())
        self.names = {id(p): n for n, p in self.parameters.items()}
        self.owners = defaultdict(list)
        for name, module in self.model.named_modules():
            for p in module.parameters(recurse=False):
                self.owners[id(p)].append((name, module))

    def blocks(self, name: str, module: nn.Module) -> list[Block]:
        """The blocks that a module's trained parameters are read in."""
        left = {id(p) for p in module.parameters() if _trained(p)}
        pieces: dict[int, set[str]] = defaultdict(set)  # that are in blocks already, of parameters in pieces
        found = []
        for reader in self._able(module):
            held = list(
                zip(map(id, _packed(reader, module)), map(_suffix, reader.parameters(module)), strict=True)
            )
            free = all(p in left and (of or not pieces[p]) and of not in pieces[p] for p, of in held)
            if not free or self._obstacle(name, module, reader):
                continue
            found.append(self._block(name, module, reader))
            for p, of in held:
                if of:
                    pieces[p].add(of)
                else:
                    left.discard(p)
        return found

    def reads_any(self, block: Block, some: Sequence[nn.Parameter]) -> bool:
        """Whether a block holds one of these parameters."""
        return not {id(self.parameters[whole(p)]) for p in block.parameters}.isdisjoint(map(id, some))

    def reason(self, name: str, module: nn.Module, p: nn.Parameter, read: bool) -> str:
        """Why a parameter is not read."""
        parts = [part for reader in self.readers for part in reader.parts(module)]
        able = [part for part in parts if _reads(part, module) and id(p) in map(id, _packed(part, module))]
        obstacles = [self._obstacle(name, module, part) or (None if read else UNREAD) for part in able]
        refusals = [*obstacles, *(part.refuses(module) for part in parts)]
        if p.is_complex() and not any(part.reads_complex for part in able):
            return COMPLEX
        return next(filter(None, refusals), f"{type(module).__name__} has no layer reader")

    def _able(self, module: nn.Module) -> Iterator[LayerReader]:
        for reader in self.readers:
            yield from (part for part in reader.parts(module) if _reads(part, module))

    def _block(self, name: str, module: nn.Module, reader: LayerReader) -> Block:
        """The block of a module, by the first of the modules tied to it that reads dense rows."""
        packed = _packed(reader, module)
        direct, transposed = self._uses(name, packed, reader, module)
        if reader.one_hot and transposed:
            name, reader = transposed[0]
            module = self.model.get_submodule(name)
            packed = _packed(reader, module)
            direct, transposed = self._uses(name, packed, reader, module)
        suffixes = [_suffix(p) for p in reader.parameters(module)]
        parameters = tuple(self.names[id(p)] + rows for p, rows in zip(packed, suffixes, strict=True))
        own = {id(p) for p in module.parameters(recurse=False)}
        all_of_it = own == set(map(id, packed)) and not any(suffixes) and not reader.composite
        return Block(
            name or "model" if all_of_it else parameters[0],
            parameters,
            reader.shape(module),
            tuple(direct),
            reader,
            complex=any(p.is_complex() for p in packed),
            transposed=tuple(transposed),
        )

    def _uses(
        self, name: str, packed: Sequence[nn.Parameter], reader: LayerReader, module: nn.Module
    ) -> tuple[list[str], list[tuple[str, LayerReader]]]:
        """The modules that use these parameters as this reader reads them, and those that transpose them."""
        if reader.composite:
            return [name], []
        direct, transposed = [], []
        for holder, other in self._holders(packed[0], name, module):
            theirs = self._same(packed, reader, module, other)
            if theirs is not None and theirs.shape(other) == reader.shape(module) and theirs == reader:
                direct.append(holder)
            elif theirs is not None:
                transposed.append((holder, theirs))
        return direct, transposed

    def _holders(self, p: nn.Parameter, name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
        """The modules that hold a parameter, or that are read with it although a module inside holds it."""
        inside = set(module.modules())
        found = [
            (name, module) if other in inside else self._around(p, n, other)
            for n, other in self.owners[id(p)]
        ]
        return list(dict.fromkeys(found))

    def _around(self, p: nn.Parameter, name: str, holder: nn.Module) -> tuple[str, nn.Module]:
        """The innermost module around a parameter's holder that a reader reads it from; else the holder."""
        path = name
        while True:
            module = self.model.get_submodule(path)
            if any(q is p for reader in self._able(module) for q in _packed(reader, module)):
                return path, module
            if not path:
                return name, holder
            path = path.rpartition(".")[0]

    def _same(
        self, packed: Sequence[nn.Parameter], reader: LayerReader, module: nn.Module, other: nn.Module
    ) -> LayerReader | None:
        """How another module reads the same parameters, as the same matrix or as its transpose."""
        shape = reader.shape(module)
        for theirs in self._able(other):
            if list(map(id, _packed(theirs, other))) != list(map(id, packed)):
                continue
            if (
                theirs == reader
                and theirs.shape(other) == shape
                and theirs.groups(other) == reader.groups(module)
            ):
                return theirs
            flipped = torch.Size(reversed(theirs.shape(other)))
            if (
                flipped == shape
                and len(packed) == 1 == theirs.groups(other)
                and theirs.one_hot != reader.one_hot
            ):
                return theirs
        return None

    def _obstacle(self, name: str, module: nn.Module, reader: LayerReader) -> str | None:
        """What forbids reading parameters although the layer's kind is known: freezing, or tying."""
        packed = _packed(reader, module)
        if any(p.is_complex() for p in packed) and not reader.reads_complex:
            return "a parameter of the layer is complex"
        if any(p.numel() == 0 for p in packed):
            return "a parameter of the layer has no elements"
        if not all(p.requires_grad for p in packed):
            return "a parameter of the layer is frozen"
        sharers = {n for p in packed for n, _ in self.owners[id(p)]}
        for p in packed:
            if {n for n, _ in self.owners[id(p)]} != sharers:
                return "weight and bias are not tied to the same layers"
        for other_name, other in self._holders(packed[0], name, module):
            if reader.composite:
                if other is not module:
                    return f'tied to "{other_name}" ({type(other).__name__}), which is no part of this module'
                continue
            if self._same(packed, reader, module, other) is None:
                return self._untied(reader, module, other_name, other)
        return None

    def _untied(self, reader: LayerReader, module: nn.Module, name: str, other: nn.Module) -> str:
        if next(self._able(other), None) is None:
            return f'tied to "{name}" ({type(other).__name__}), which has no layer reader'
        if reader.refuses(other) is None and reader.groups(other) != reader.groups(module):
            return f'tied to "{name}", which has another number of groups'
        return f'tied to "{name}" ({type(other).__name__}), which reads it as another matrix'


def _reads(reader: LayerReader, module: nn.Module) -> bool:
    """Whether a reader can read parameters that a module holds itself: no functions of others."""
    if reader.refuses(module) is not None:
        return False
    return all(_parameter(module, whole(n)) is not None for n in reader.parameters(module))


def _packed(reader: LayerReader, module: nn.Module) -> list[nn.Parameter]:
    found = (_parameter(module, whole(name)) for name in reader.parameters(module))
    return [p for p in found if p is not None]


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter of this name, unless a function of others stands in its place."""
    path, _, last = name.rpartition(".")
    return module.get_submodule(path)._parameters.get(last)


def _suffix(name: str) -> str:
    """What says which rows a piece has; nothing for a whole parameter."""
    return name[len(whole(name)) :]


def empty(model: nn.Module) -> dict[str, str]:
    """The parameters that require a gradient and hold no element: in no block, each with the reason."""
    return {n: NO_ELEMENTS for n, p in model.named_parameters() if p.requires_grad and not _trained(p)}


def _trained(p: nn.Parameter) -> bool:
    return p.requires_grad and p.numel() > 0


def _alone(name: str, p: nn.Parameter, reason: str) -> Block:
    """A parameter as a block by itself."""
    if p.is_complex():
        return Block(name, (name,), torch.Size((*p.shape, 2)), reason=COMPLEX, complex=True)
    return Block(name, (name,), p.shape, reason=reason)


def _require_shapes(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(is_lazy(p) for p in module.parameters(recurse=False)):
            what = f'layer "{name or "model"}" ({type(module).__name__}) has no shape yet'
            raise ConfigError(Fault(what, hint="call the model on one batch before making the optimizer"))
