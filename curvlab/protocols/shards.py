"""Parameters that processes hold in shards, as ``torch.distributed.fsdp.fully_shard`` leaves them.

Between passes a parameter is a ``DTensor`` of which every process has some rows.  While its module computes,
a plain tensor with all rows stands in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Shards:
    """What a sharded model computes with, and what this process has gathered of it.

    ``leaves`` are the parameters with all rows, by name: autograd accumulates this process's gradient there,
    before it is averaged.  Their memory is there only while their module computes.  ``wrapped`` are the
    modules that ``fully_shard`` was called on.  ``gathered`` holds parameters with all rows for the length of
    a step: those of the blocks that this process owns.
    """

    leaves: Mapping[str, nn.Parameter]
    wrapped: Sequence[Any]
    size: int  #: processes
    rank: int  #: of this process
    gathered: dict[str, Tensor] = field(default_factory=dict)

    def reshard(self) -> None:
        """Every parameter of the model is its ``DTensor`` again, after an evaluation without a backward."""
        for module in self.wrapped:
            module.reshard()

    def rows(self, length: int, rank: int) -> range:
        """Which rows of a parameter with ``length`` rows a process holds: equal shares, the last less."""
        share = -(-length // self.size)
        return range(min(rank * share, length), min((rank + 1) * share, length))


def local(t: Tensor) -> Tensor:
    """This process's rows of a ``DTensor``, sharing its memory."""
    found: Tensor = t.detach().to_local()  # type: ignore[attr-defined]
    return found


def local_gradients(parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor | None]]:
    """This process's rows of every averaged gradient; ``None`` for a parameter without one."""
    for name, p in parameters.items():
        yield name, None if p.grad is None else local(p.grad)
