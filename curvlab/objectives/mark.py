"""Marks: what a function depends on, as values that are compared; equal marks, equal functions.

Tensors are marked by their contents, so that neither new tensors with the same numbers nor old ones with new
numbers are mistaken; nothing of them is held.  Other objects are marked by identity, without being kept
alive, and by the plain values, tensors and containers of these among their attributes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from types import CellType, FunctionType, MethodType
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from curvlab.errors import CurvlabError

#: what is compared by value
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, Enum, torch.dtype, torch.device)
#: integers of the width of an element, to read its bits
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: entries that are mixed together on the CPU: a few buffers of them stay in a cache
_STRETCH = 2**14
#: where a module keeps what is marked by name
_MODULES_OWN = ("_parameters", "_buffers", "_modules")
#: an odd multiplier, from the binary digits of the golden ratio
_MIX = -7046029254386353131
#: in the place of an entry that was removed while its mapping was read
_GONE = object()


class Unmarked(CurvlabError):
    """Something cannot be marked."""


def mark_of(value: Any) -> Hashable:
    """The mark of data, or of an object; raises ``Unmarked``."""
    if isinstance(value, Tensor):
        return bits_of(value)
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Mapping):
        return type(value), tuple((mark_of(k), mark_of(v)) for k, v in value.items())
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(mark_of, value))
    if isinstance(value, nn.Module):
        return mark_of_module(value, trained=True)
    if is_dataclass(value):
        return type(value), tuple(mark_of(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, MethodType):
        return mark_of(value.__func__), mark_of(value.__self__)
    inside = _attributes(value)
    if isinstance(value, FunctionType):
        inside = (inside, tuple(map(_in_cell, value.__closure__ or ())))
    return _identity(value), inside


def mark_of_module(module: nn.Module, *, trained: bool) -> Hashable:
    """A mark of every module in it: identity, mode and plain attributes; and its tensors.

    Parameters that require a gradient are left out unless ``trained``.
    """
    tensors = [*module.named_buffers(), *module.named_parameters()]
    kept = [(n, t) for n, t in tensors if trained or not t.requires_grad]
    modules = tuple((_identity(m), _attributes(m)) for m in module.modules())
    return modules, tuple((n, bits_of(t)) for n, t in kept)


def bits_of(tensor: Tensor) -> Hashable:
    """Shape, dtype, device and 64 bits that depend on every bit of the entries and on their places.

    Halves of a stretch, keys added, are multiplied entry by entry and summed: the NH hash (Black, Halevi,
    Krawczyk, Krovetz and Rogaway 1999, UMAC), whose sums are then the coefficients of a polynomial.  Two
    tensors that differ have the same mark with a probability of about 2⁻³².  Reads the entries once, and
    moves one number to the host; raises ``Unmarked`` for tensors that are not dense.
    """
    t = tensor.detach()
    if t.layout is not torch.strided or t.is_quantized or t.device.type == "meta":
        raise Unmarked(f"a tensor of layout {t.layout} on {t.device}")
    bits = torch.view_as_real(t) if t.is_complex() else t
    bits = bits.contiguous().view(_BITS[bits.element_size()])
    bits = bits.as_strided((bits.numel(),), (1,))  # of one entry, any stride is contiguous
    bits = bits.view(torch.int32) if bits.element_size() == 8 else bits
    keys = _keys(t.device)
    total = torch.zeros((), dtype=torch.int64, device=t.device)
    for k in range(0, len(bits), len(keys)):
        x = bits[k : k + len(keys)].to(torch.int32)
        x = nn.functional.pad(x, (0, len(x) % 2)).add(keys[: len(x) + len(x) % 2]).to(torch.int64)
        half = len(x) // 2
        total.mul_(_MIX).add_((x[:half] * x[half:]).sum())
    return tuple(tensor.shape), tensor.dtype, tensor.device, int(total)


@lru_cache(maxsize=8)
def _keys(device: torch.device) -> Tensor:
    """Fixed numbers, one for each place of a stretch."""
    generator = torch.Generator(device="cpu").manual_seed(20240917)
    size = _STRETCH if device.type == "cpu" else 2**22
    drawn = torch.randint(-(2**31), 2**31 - 1, (size,), generator=generator, dtype=torch.int64, device="cpu")
    return drawn.to(device, torch.int32)


def _in_cell(cell: CellType) -> Hashable:
    """What a closure holds of a variable around it."""
    try:
        return _shallow(cell.cell_contents)
    except ValueError:
        raise Unmarked("a variable of a closure is not set yet") from None


def _attributes(value: Any) -> Hashable:
    """What an object holds: plain values, tensors and containers by content, other objects by identity."""
    found: Mapping[str, Any] = getattr(value, "__dict__", {})
    own = _MODULES_OWN if isinstance(value, nn.Module) else ()
    return tuple((n, _shallow(v)) for n, v in found.items() if n not in own)


def _shallow(value: Any, depth: int = 3) -> Hashable:
    if isinstance(value, (Tensor, *_PLAIN)):
        return mark_of(value)
    if not isinstance(value, (Mapping, tuple, list, set, frozenset)):
        return _identity(value)
    if not depth:
        raise Unmarked(f"a {type(value).__name__} within others")
    if isinstance(value, Mapping):
        # garbage collection removes the hooks of dead owners at any time, so the keys are copied first
        held = ((k, value.get(k, _GONE)) for k in list(value))
        return type(value), tuple((_shallow(k, 0), _shallow(v, depth - 1)) for k, v in held if v is not _GONE)
    each = (_shallow(v, depth - 1) for v in value)
    return type(value), frozenset(each) if isinstance(value, (set, frozenset)) else tuple(each)


def _identity(value: Any) -> Hashable:
    """Equal only for the same object, while it lives."""
    try:
        return _Same(ref(value))
    except TypeError:
        raise Unmarked(f"a {type(value).__name__} has no weak references") from None


class _Same:
    """Is equal to another of the same object, as long as that is alive; objects' own ``==`` is not asked."""

    def __init__(self, to: ref[Any]) -> None:
        self.to, self.number = to, id(to())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.to() is not None and self.to() is other.to()

    def __hash__(self) -> int:
        return self.number
