"""How much memory torch's tensors take up at once, as the operations that make them are seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """The largest number of bytes in tensors, alive at one time, that operations inside have made."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {_where(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self.held = {at: (ref, n) for at, (ref, n) in self.held.items() if not ref.expired()}
        for t in tree_leaves(made):
            if isinstance(t, Tensor) and _where(t) not in given:
                self.held[_where(t)] = (StorageWeakRef(t.untyped_storage()), t.untyped_storage().nbytes())
        self.peak = max(self.peak, sum(n for _, n in self.held.values()))
        return made


def peak(operation: Callable[[], object]) -> int:
    """Bytes made and alive at once while ``operation`` runs."""
    with Live() as live:
        operation()
    return live.peak


def _where(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)
