"""What torch is made to execute: the largest tensor that an operation makes, and waits for the device.

torch has no public name for the class that sees every operation; this module is the one that takes the
private one, so that no other has to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many numbers the largest tensor holds that any operation makes; a view counts as what it views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(t, Tensor):
                self.numbers = max(self.numbers, t.untyped_storage().nbytes() // t.element_size())
        return made


def largest(operation: Callable[[], Any]) -> int:
    """How many numbers the largest tensor holds that ``operation`` makes."""
    with Largest() as seen:
        operation()
    found: int = seen.numbers
    return found


_ATEN = torch.ops.aten
#: operations whose result, or whose error, the host must wait for on an accelerator
_WAITING = (
    _ATEN._local_scalar_dense,
    _ATEN.equal,
    _ATEN.nonzero,
    _ATEN.masked_select,
    _ATEN._unique2,
    _ATEN._linalg_check_errors,
)
#: the same of tensors that lie on the CPU, where no operation is seen
_READING = {"tolist", "numpy", "__array__", "cpu", "__dlpack__"}


#: reads are let through, and not noted, while this is not empty
_allowed: list[bool] = []


@contextmanager
def waiting() -> Iterator[None]:
    """Inside, waiting for the device is nothing to note: a factorization must know whether it failed."""
    _allowed.append(True)
    try:
        yield
    finally:
        _allowed.pop()


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        packet = getattr(func, "overloadpacket", None)
        by_mask = packet is _ATEN.index and any(
            isinstance(i, Tensor) and i.dtype is torch.bool for i in args[1] if i is not None
        )
        if (packet in _WAITING or by_mask) and not _allowed:
            self.found.append(str(packet).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READING and not _allowed:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def host_syncs(operation: Callable[[], Any]) -> Counter[str]:
    """How often, by name, the host waits for the device in ``operation``, whichever device it runs on here.

    On the CPU, reads of tensors that would stay on the host count, too.
    """
    found: list[str] = []
    with _Functions(found), _Operations(found):
        operation()
    return Counter(found)


def host_reads(operation: Callable[[], Any]) -> list[str]:
    """What makes the host wait for the device in ``operation``, by name, whichever device it runs on here."""
    return list(host_syncs(operation))
