"""Partitions: every trainable parameter in exactly one block."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from curvlab.errors import ConfigError, Fault
from curvlab.model.conv import ConvReader
from curvlab.model.linear import LinearReader
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.reader import LayerReader

#: tried in order; the first that does not refuse reads the layer
READERS: tuple[LayerReader, ...] = (LinearReader(), ConvReader())

#: why a block is a complex parameter by itself
COMPLEX = "complex parameter"

#: why a parameter is in no block
NO_ELEMENTS = "no elements"


def partition(model: nn.Module, joins: Callable[[str], bool], known: Blocks | None = None) -> Blocks:
    """Blocks over all parameters of ``model`` that require a gradient, in the model's order.

    A layer that a reader can read, and whose name ``joins`` wants as one block, packs weight and
    bias together; a parameter read in any other way is a block by itself, with the reason.  A parameter
    without elements is in no block (``empty`` lists those).  Complex parameters are blocks of pairs of
    reals, and come first: a complex view of a real buffer must begin at an even offset.
    Blocks that are ``known`` stay as they are, and parameters that are in none of them are added; only a
    layer of which a part was frozen becomes one block once it can be.
    Raises ``ConfigError`` for a lazy layer that has no shape yet.
    """
    _require_shapes(model)
    names = {id(p): n for n, p in model.named_parameters()}
    owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
    for module_name, module in model.named_modules():
        for p in module.parameters(recurse=False):
            owners[id(p)].append((module_name, module))

    members: list[Block] = [] if known is None else list(known.members)
    taken: set[int] = set() if known is None else {id(p) for p in known.parameters.values()}
    for module_name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if _trained(p) and id(p) not in taken]
        if not own:
            continue
        reader, reason = _reader(model, module_name, module, owners)
        if known is not None and reader is not None and joins(module_name or "model"):
            parts = {names[id(getattr(module, p))] for p in reader.parameters(module)}
            members = [b for b in members if not parts.issuperset(b.parameters)]
        taken.update(id(p) for p in own)
        block_name = module_name or "model"
        if reader is not None and joins(block_name):
            packed = reader.parameters(module)
            layers = tuple(n for n, _ in owners[id(getattr(module, packed[0]))])
            parameters = tuple(names[id(getattr(module, p))] for p in packed)
            members.append(Block(block_name, parameters, reader.shape(module), layers, reader))
            continue
        if reader is not None:
            reason = "the method reads no statistics of this layer"
        members.extend(_alone(names[id(p)], p, reason) for p in own)
    members.sort(key=lambda block: not block.complex)
    if known is None:
        return Blocks(model, tuple(members))
    return Blocks(model, tuple(members), untapped=known.untapped, explained=known.explained)


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


def _reader(
    model: nn.Module,
    module_name: str,
    module: nn.Module,
    owners: dict[int, list[tuple[str, nn.Module]]],
) -> tuple[LayerReader | None, str]:
    """The reader that reads this module, or why there is none."""
    unknown = reason = f"{type(module).__name__} has no layer reader"
    for reader in READERS:
        refusal = reader.refuses(module)
        if refusal is None:
            refusal = _obstacle(model, module_name, module, reader, owners)
        if refusal is None:
            return reader, ""
        if refusal != unknown:  # the reader of this kind has more to say than those of others
            reason = refusal
    return None, reason


def _obstacle(
    model: nn.Module,
    module_name: str,
    module: nn.Module,
    reader: LayerReader,
    owners: dict[int, list[tuple[str, nn.Module]]],
) -> str | None:
    """What forbids reading a layer although its kind is known: its parent, freezing, or tying."""
    parent = model.get_submodule(module_name.rpartition(".")[0]) if module_name else None
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention uses this weight without calling its layer"
    packed = [getattr(module, name) for name in reader.parameters(module)]
    if set(map(id, packed)) != set(map(id, module.parameters(recurse=False))):
        return "the layer has parameters other than weight and bias"
    if any(p.is_complex() for p in packed):
        return "a parameter of the layer is complex"
    if any(p.numel() == 0 for p in packed):
        return "a parameter of the layer has no elements"
    if not all(p.requires_grad for p in packed):
        return "a parameter of the layer is frozen"
    sharers = {n for p in packed for n, _ in owners[id(p)]}
    for p in packed:
        if {n for n, _ in owners[id(p)]} != sharers:
            return "weight and bias are not tied to the same layers"
        for other_name, other in owners[id(p)]:
            if reader.refuses(other) is not None:
                return f'tied to "{other_name}" ({type(other).__name__}), which has no layer reader'
            if reader.groups(other) != reader.groups(module):
                return f'tied to "{other_name}", which has another number of groups'
    return None
