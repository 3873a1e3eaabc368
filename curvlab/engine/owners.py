"""Which process computes with which block, where several train one model.

Every process has the whole model and its gradient.  The owner of a block alone gets the rows of its layer,
holds its state and finds its update; then it tells the others the block's new parameters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from curvlab.engine.arms import is_joint
from curvlab.engine.method import Method
from curvlab.errors import ConfigError, Fault
from curvlab.objectives.ranks import Ranks
from curvlab.objectives.shard_traffic import ShardTraffic
from curvlab.protocols.blocks import Block, Blocks, as_real
from curvlab.protocols.pieces import whole
from curvlab.protocols.shards import local

Placement = Literal["auto", "owner", "replicate"]


@dataclass(frozen=True)
class Owners:
    """The rank of each block, and how much work each rank has.

    Blocks go to the rank with the least work so far, the longest first: a map of names, shapes and settings
    alone, which every rank computes for itself.  ``work(block)`` are about the flops of a step.  Blocks that
    come later are added to the map.
    """

    ranks: Ranks
    work: Callable[[Block], float]
    of: dict[str, int] = field(default_factory=dict)
    loads: dict[int, float] = field(default_factory=dict)

    def extend(self, blocks: Iterable[Block]) -> None:
        """Give every block an owner that has none.  Pieces of one parameter are apart like others."""
        self.loads.update({r: self.loads.get(r, 0.0) for r in range(self.ranks.size)})
        longest_first = sorted(((self.work(b), b.name) for b in blocks), key=lambda each: (-each[0], each[1]))
        for work, name in longest_first:
            if name not in self.of:
                self.of[name] = min(self.loads, key=lambda rank: (self.loads[rank], rank))
                self.loads[self.of[name]] += work

    def mine(self, blocks: Blocks) -> Blocks:
        """Those of these blocks that this rank owns; may be none."""
        rank = self.ranks.rank
        return blocks.select([b.name for b in blocks.members if self.of[b.name] == rank])

    @contextmanager
    def gathered(self, blocks: Blocks) -> Iterator[None]:
        """Inside, this rank has whole parameters of its own blocks, of a model in shards."""
        shards = blocks.shards
        if shards is None:
            yield
            return
        shards.reshard()  # an evaluation may have left whole parameters behind, which no shard would follow
        mine = {n: local(p) for n, p in blocks.parameters.items()}
        try:
            shards.gathered.update(ShardTraffic(self.ranks, self.of).to_owners(blocks, mine))
            yield
        finally:
            shards.gathered.clear()

    @torch.no_grad()
    def spread(self, blocks: Blocks, absent: frozenset[str]) -> None:
        """Every rank takes on the parameters that a block's owner has written.

        One message for each rank and dtype.  Parameters in ``absent`` had no gradient and were not written.
        Every rank of a model in shards takes on its rows.
        """
        if blocks.shards is not None:
            mine = {n: local(p) for n, p in blocks.parameters.items() if n not in absent}
            ShardTraffic(self.ranks, self.of).to_shards(blocks, blocks.shards.gathered, mine)
            return
        for rank in range(self.ranks.size):
            for values in self._written(blocks, rank, absent).values():
                buffer = torch.cat([v.reshape(-1) for v in values])
                self.ranks.from_(rank, buffer)
                if rank != self.ranks.rank:
                    pieces = buffer.split_with_sizes([v.numel() for v in values])
                    for value, piece in zip(values, pieces, strict=True):
                        value.copy_(piece.view_as(value))

    def _written(
        self, blocks: Blocks, rank: int, absent: frozenset[str]
    ) -> Mapping[torch.dtype, list[Tensor]]:
        found: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for block in blocks.members:
            for name in block.parameters if self.of[block.name] == rank else ():
                if whole(name) not in absent:
                    value = as_real(blocks.value(name).detach())
                    found[value.dtype].append(value)
        return found


def owners_of(
    placement: str,
    ranks: Ranks | None,
    method: Method,
    refuses: Callable[[Block], bool],
    *,
    sharded: bool = False,
) -> Owners | None:
    """Where ``placement`` asks for them, or is "auto" and the method can; ``None``: every rank holds all.

    Raises ``ConfigError`` for another word, and for "owner" with a method whose blocks depend on each other.
    ``refuses`` says which blocks go to the fallback.  A ``sharded`` model needs owners, in one process too.
    """
    if placement not in ("auto", "owner", "replicate"):
        raise ConfigError(
            Fault(
                f'unknown placement "{placement}"',
                path="placement",
                hint='use "auto", "owner" or "replicate"',
            )
        )
    if sharded and placement == "replicate":
        what = 'placement = "replicate" keeps whole parameters in every process, but the model is in shards'
        raise ConfigError(Fault(what, path="placement", hint='use placement = "owner", or "auto"'))
    if ranks is None or (not sharded and (ranks.size == 1 or placement == "replicate")):
        return None
    couples = [*_coupling(method), *(_coupling(method.fallback) if method.fallback is not None else ())]
    if couples:
        parts = ", ".join(couples)
        if sharded:
            raise ConfigError(
                Fault(
                    f"the model is in shards (fully_shard), and {parts} may use all blocks together",
                    hint="use a method that treats every block by itself, such as kfac, or train with"
                    " DistributedDataParallel",
                )
            )
        if placement == "auto":
            return None
        raise ConfigError(
            Fault(
                f'placement = "owner" shares the blocks out among processes, but {parts} may use all of them'
                " together",
                path="placement",
                hint='use placement = "replicate", where every process holds all blocks',
            )
        )

    def work(block: Block) -> float:
        treats = method.fallback if refuses(block) and method.fallback is not None else method
        return treats.preconditioner.work(block)

    return Owners(ranks, work)


def _coupling(method: Method) -> list[str]:
    """The parts of a method that do not say that they treat every block by itself."""
    parts: list[Any] = [
        method.preconditioner,
        method.damping,
        method.step,
        *method.on_gradient,
        *method.on_update,
    ]
    names = [type(part).__name__ for part in parts if not part.separable]
    return names or (["its solve"] if is_joint(method) else [])
