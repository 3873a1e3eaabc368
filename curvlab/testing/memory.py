"""What an operation holds in tensors while it runs: the most at once, and how often it asks for memory.

The numbers do not depend on the machine: storages are counted as torch's operations make them and as the last
reference to them goes, not as an allocator rounds and keeps them.  What a kernel needs within itself is not
seen.

This module imports torch alone: a benchmark may load the file by its path, and measure an older version of
the package with it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Held:
    """``peak``: the most bytes alive at once, of storages made inside; ``allocations``: how many."""

    peak: int
    allocations: int


def held(operation: Callable[[], Any]) -> Held:
    """What ``operation`` holds, beside what was there before."""
    with Storages() as storages, _no_collector():
        operation()
    return Held(storages.peak, storages.allocations)


class Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees storages come and go; what it did not see come is not counted when it returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.allocations = 0
        self._sizes: dict[int, int] = {}
        self._watches: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        # a tensor made from Python's numbers first shows as an argument
        if getattr(func, "overloadpacket", None) is not torch.ops.aten.lift_fresh:
            for t in _tensors((*args, *given.values())):
                self._know(t, made=False)
        returned = func(*args, **given)
        for t in _tensors((returned,)):
            self._know(t, made=True)
        return returned

    def _know(self, t: Tensor, *, made: bool) -> None:
        storage = t.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        before = self._sizes.get(key)
        if before is None:
            # torch keeps one Python object per storage for as long as the storage lives
            self._watches[key] = weakref.ref(storage, lambda _, key=key: self._forget(key))  # type: ignore[misc]
            self._sizes[key] = size if made else -1
            if made:
                self.allocations += 1
                self._add(size)
        elif before >= 0 and size != before:  # resized
            self._sizes[key] = size
            self._add(size - before)

    def _forget(self, key: int) -> None:
        self.now -= max(self._sizes.pop(key), 0)
        del self._watches[key]

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def alive() -> dict[int, int]:
    """Bytes of every storage that a tensor which Python can reach holds, by address; each storage once.

    What an object holds between two moments is the difference of two such looks, measured from outside.
    """
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        try:
            is_tensor = issubclass(type(thing), Tensor)  # isinstance would look into lazy modules
        except ReferenceError:  # a dead weak proxy
            continue
        if is_tensor and _has_memory(thing) and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def _has_memory(tensor: Tensor) -> bool:
    """Whether it has a storage of its own: subclasses that dispatch, as fake tensors do, have none."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Cycles of references go when Python's collector comes round: never inside, and before it."""
    gc.collect()
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
