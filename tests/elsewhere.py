"""A second device on a machine that has none: the CPU under the name ``lazy``, kept apart as CUDA would be.

Tensors on it hold real numbers, so that a whole training step runs, with every branch that it takes.  An
operation that mixes them with tensors of the CPU raises ``MixedDevices``, where CUDA raises too: tensors
without dimensions and indices may be of the host, and so may both sides of a copy.

A model is made there, ``with torch.device(DEVICE)``, or moved there if no two of its layers share a
parameter.  Assignments to ``.data`` are not simulated.

torch lets autograd work on a device that it is built without for two of its names alone, ``meta`` and
``lazy``; of the first, torch knows that it holds no numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy", 0)
CPU = torch.device("cpu")

_ATEN = torch.ops.aten
#: operations between devices
_COPIES = {_ATEN._to_copy, _ATEN.copy_, _ATEN.copy}
#: operations that the host waits for
_READS = {
    _ATEN._local_scalar_dense,
    _ATEN.equal,
    _ATEN.nonzero,
    _ATEN.masked_select,
    _ATEN._unique2,
    _ATEN._linalg_check_errors,
}
#: operations that take indices of the host; they come behind the first argument
_INDEXED = {_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_, _ATEN._unsafe_index}


class MixedDevices(RuntimeError):
    """An operation was given tensors of both devices."""


class Elsewhere(Tensor):
    """A tensor on the other device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held})"

    # torch's own do not dispatch

    def tolist(self) -> Any:
        _note("tolist")
        return self.held.tolist()

    def new_tensor(self, data: Any, **how: Any) -> Tensor:
        return Elsewhere(self.held.new_tensor(data, **how))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Generator(torch.Generator):
    """A generator of either device, drawing the CPU's numbers."""

    #: those of the other device by their address, kept so that no other takes it: an operation is given a
    #: generator without its class
    elsewhere: ClassVar[dict[int, torch.Generator]] = {}
    device: Any

    def __new__(cls, device: Any = CPU) -> _Generator:
        made = super().__new__(cls, device=CPU)
        made.where = torch.device(device)  # type: ignore[attr-defined]
        if made.device.type == DEVICE.type:
            cls.elsewhere[made._cdata] = made  # type: ignore[attr-defined]
        return made

    @property  # type: ignore[no-redef]
    def device(self) -> torch.device:
        where: torch.device = self.where  # type: ignore[attr-defined]
        return where


class _Machine(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what is made on a device by its name, which no tensor leads to."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


#: where the host's waits are counted, while they are
_counts: list[Counter[str]] = []


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """How often the host waits for the device, by operation, inside; within ``second_device``."""
    _counts.append(Counter())
    try:
        yield _counts[-1]
    finally:
        _counts.pop()


def _note(name: str) -> None:
    for count in _counts:
        count[name] += 1


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Inside, the device is there.  It has no autocast, of which torch raises."""
    known, tensor = torch.is_autocast_enabled, torch.tensor

    def enabled(kind: str) -> bool:
        return kind != DEVICE.type and known(kind)

    def made(data: Any, *, device: Any = None, **how: Any) -> Tensor:
        return tensor(data, device=CPU, **how).to(device or torch.get_default_device())

    with (
        mock.patch("torch.Generator", _Generator),
        mock.patch("torch.is_autocast_enabled", enabled),
        mock.patch("torch.tensor", made),
        _Machine(),
    ):
        yield DEVICE
    _Generator.elsewhere.clear()


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    packet = func.overloadpacket
    given = tree_flatten((args, kwargs))[0]
    tensors = [t for t in given if isinstance(t, Tensor)]
    elsewhere = any(isinstance(t, Elsewhere) for t in tensors)
    asked = kwargs.get("device")
    target = torch.device(asked) if asked is not None else DEVICE if elsewhere else CPU
    if packet in (_ATEN.copy_, _ATEN.copy):
        target = args[0].device
    elif elsewhere or target.type == DEVICE.type or kwargs.get("generator") is not None:
        checked = tree_flatten(args[0])[0] if packet in _INDEXED else given
        _require_one_device(func, [] if packet in _COPIES else checked, target, kwargs)
    if elsewhere and _waits(packet, args, target):
        _note(str(packet).removeprefix("aten."))
    if target.type not in (DEVICE.type, "cpu"):
        return func(*args, **kwargs)
    if asked is not None:
        kwargs["device"] = CPU
    if packet is _ATEN._efficientzerotensor:  # zeros without memory, of which the kernels of the CPU know
        func = _ATEN.zeros.default
    if "generator" in kwargs and kwargs["generator"] is None:
        kwargs.pop("generator")
    found = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
    if target.type != DEVICE.type:
        return found
    wrapped = tree_map(lambda t: Elsewhere(t) if isinstance(t, Tensor) else t, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if elsewhere else wrapped


def _waits(packet: Any, args: tuple[Any, ...], target: torch.device) -> bool:
    """Whether the host needs the numbers to go on: it reads them, or a shape hangs on them."""
    if packet in _COPIES:
        return target.type == "cpu"
    by_mask = packet is _ATEN.index and any(i is not None and i.dtype is torch.bool for i in args[1])
    return packet in _READS or by_mask


def _plain(what: Any) -> Any:
    return what.held if isinstance(what, Elsewhere) else what


def _require_one_device(func: Any, given: list[Any], target: torch.device, kwargs: Mapping[str, Any]) -> None:
    kinds = [t for t in given if isinstance(t, Tensor)]
    strange = [t for t in kinds if not isinstance(t, Elsewhere) and t.dim()]
    strange = strange if target.type == DEVICE.type or len(strange) < len(kinds) else []
    if strange:
        shapes = ", ".join(str(tuple(t.shape)) for t in strange)
        raise MixedDevices(
            f"{func} was given a tensor of the CPU, of shape {shapes}, among others of {DEVICE}"
        )
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in _Generator.elsewhere) != (target.type == DEVICE.type):
        raise MixedDevices(f"{func} draws on {target} with a generator of the other device")
