"""What a model takes and gives may be several tensors: tuples, lists and mappings of them, in one another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault


@dataclass(frozen=True)
class Unpacked:
    """A batch that is the model's arguments: a mapping by keyword, a tuple or list by position.

    Anything else is the one argument.
    """

    batch: Any

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional arguments, and those by keyword."""
        if isinstance(self.batch, Mapping):
            return (), dict(self.batch)
        if isinstance(self.batch, (tuple, list)):
            return tuple(self.batch), {}
        return (self.batch,), {}


def arguments(inputs: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called on.

    Inputs in a container are one argument, with two exceptions: a mapping whose keys are all names of
    arguments is given by keyword, and a sequence in order if ``forward`` takes so many, and not one.
    """
    if isinstance(inputs, Unpacked):
        return inputs.arguments()
    if isinstance(inputs, (tuple, list, Mapping)):
        signature = inspect.signature(model.forward)
        if isinstance(inputs, Mapping):
            if inputs and all(name in signature.parameters for name in inputs):
                return (), dict(inputs)
        elif not _takes(signature, inputs) and _takes(signature, *inputs):
            return tuple(inputs), {}
    return (inputs,), {}


def accepted(batch: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The entries of a batch that the model's ``forward`` takes by name: all, if it takes any keyword.

    Raises ``ConfigError`` if it takes none of them.
    """
    parameters = _signature(model).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(batch)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    found = {key: value for key, value in batch.items() if key in names}
    if not found:
        raise ConfigError(
            Fault(
                f"the batch has the entries {', '.join(map(str, batch))}, and the forward of"
                f" {type(model).__name__} takes {', '.join(sorted(names)) or 'nothing'}",
                hint="name the entries as the model's arguments, or give (inputs, targets)",
            )
        )
    return found


def _signature(model: nn.Module) -> inspect.Signature:
    """That of the model's ``forward``; for a wrapper that passes on all it gets, of the module inside."""
    found = inspect.signature(model.forward)
    inside = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
    passes = {p.kind for p in found.parameters.values()} <= {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    return _signature(inside) if passes and isinstance(inside, nn.Module) else found


def _takes(signature: inspect.Signature, *given: Any) -> bool:
    try:
        signature.bind(*given)
    except TypeError:
        return False
    return True


def each_tensor(change: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """``inputs`` with every tensor in tuples, lists and mappings changed; containers keep their types.

    Anything else in them stays as it is.
    """
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Unpacked):
        return Unpacked(each_tensor(change, inputs.batch))
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):  # a named tuple takes its fields one by one
        return type(inputs)(*(each_tensor(change, inner) for inner in inputs))
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(each_tensor(change, inner) for inner in inputs)
    if isinstance(inputs, Mapping):
        found: Any = copy(inputs)  # of its type, be it ordered or with a default
        for name, inner in inputs.items():
            found[name] = each_tensor(change, inner)
        return found
    return inputs


def tensors_of(what: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, in order."""
    if isinstance(what, Tensor):
        yield what
    elif isinstance(what, Unpacked):
        yield from tensors_of(what.batch)
    elif isinstance(what, (list, tuple)):
        for inner in what:
            yield from tensors_of(inner)
    elif isinstance(what, Mapping):
        yield from tensors_of(list(what.values()))


def as_one(outputs: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """All floating-point outputs as one tensor, and what makes outputs of such a tensor again.

    A single tensor is itself; several are one vector.
    """
    if isinstance(outputs, Tensor):
        return outputs, lambda f: f
    parts = [t for t in tensors_of(outputs) if t.is_floating_point()]
    flat = torch.cat([t.reshape(-1) for t in parts]) if parts else torch.zeros(0, device="cpu")
    sizes = [t.numel() for t in parts]
    template = each_tensor(lambda t: t.detach(), outputs)

    def apart(f: Tensor) -> Any:
        pieces = iter(torch.split(f, sizes))

        def piece(t: Tensor) -> Tensor:
            return next(pieces).view(t.shape).to(t.dtype) if t.is_floating_point() else t

        return each_tensor(piece, template)

    return flat, apart
