"""What processes send each other of a sharded model: rows of parameters and gradients, to owners and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from curvlab.objectives.ranks import Ranks
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.pieces import rows_of_piece, whole
from curvlab.protocols.shards import Shards


@dataclass(frozen=True)
class ShardTraffic:
    """Between the shards of a model and the owners of its blocks; ``owners`` gives the rank of each block.

    One message a call.  Every process makes the same calls with the same blocks.
    """

    ranks: Ranks
    owners: Mapping[str, int]

    @torch.no_grad()
    def to_owners(self, blocks: Blocks, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of the parameters of this process's blocks, from everyone's rows of them.

        ``mine`` are this process's rows by parameter; a parameter that is missing there is missing everywhere.
        Of a parameter in pieces, the rows of other owners' pieces are zero.  A process sends its rows of the
        blocks that it does not own.
        """
        shards, me = self._shards(blocks), self.ranks.rank
        out = [
            _flat(mine[p][_within(span, shards.rows(_length(blocks, p), me).start)])
            for owner in range(self.ranks.size)
            for p, span in self._spans(blocks, shards, owner, me, mine.__contains__)
        ]
        coming = [
            [*self._spans(blocks, shards, me, rank, mine.__contains__)] for rank in range(self.ranks.size)
        ]
        found = {
            p: torch.zeros(blocks.parameters[p].shape, dtype=mine[p].dtype, device=mine[p].device)
            for p in dict.fromkeys(p for some in coming for p, _ in some)
        }
        got = self._exchanged(
            blocks,
            torch.cat([*out, blocks.like.new_empty(0, dtype=_dtype(mine, blocks))]),
            lambda rank: self._spans(blocks, shards, rank, me, mine.__contains__),
            coming,
        )
        for p, span, piece in got:
            found[p][span.start : span.stop] = piece
        return found

    @torch.no_grad()
    def to_shards(self, blocks: Blocks, whole_: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> None:
        """Write everyone's rows, from the owners of the blocks.

        ``whole_`` are whole parameters of this process's blocks; ``mine`` this process's rows, in place, of the
        parameters that were written.  A process sends the rows of its blocks that others hold.
        """
        shards, me = self._shards(blocks), self.ranks.rank
        leaving = [
            [*self._spans(blocks, shards, me, rank, mine.__contains__)] for rank in range(self.ranks.size)
        ]
        out = [_flat(whole_[p][span.start : span.stop]) for some in leaving for p, span in some]
        coming = [
            [*self._spans(blocks, shards, owner, me, mine.__contains__)] for owner in range(self.ranks.size)
        ]
        got = self._exchanged(
            blocks,
            torch.cat([*out, blocks.like.new_empty(0, dtype=_dtype(mine, blocks))]),
            lambda rank: leaving[rank],
            coming,
        )
        for p, span, piece in got:
            mine[p][_within(span, shards.rows(_length(blocks, p), me).start)] = piece

    def _exchanged(
        self,
        blocks: Blocks,
        out: Tensor,
        leaving: Callable[[int], Iterator[tuple[str, range]] | list[tuple[str, range]]],
        coming: list[list[tuple[str, range]]],
    ) -> Iterator[tuple[str, range, Tensor]]:
        """What comes of each rank, given what goes to each."""

        def numbers(spans: Iterator[tuple[str, range]] | list[tuple[str, range]]) -> int:
            return sum(len(span) * blocks.parameters[p].shape[1:].numel() for p, span in spans)

        sizes = [numbers(some) for some in coming]
        buffer = out.new_empty(sum(sizes))
        dist.all_to_all_single(
            buffer,
            out,
            output_split_sizes=sizes,
            input_split_sizes=[numbers(leaving(rank)) for rank in range(self.ranks.size)],
            group=self.ranks.group,
        )
        start = 0
        for some in coming:
            for p, span in some:
                shape = (len(span), *blocks.parameters[p].shape[1:])
                stop = start + torch.Size(shape).numel()
                yield p, span, buffer[start:stop].view(shape)
                start = stop

    def _spans(
        self, blocks: Blocks, shards: Shards, owner: int, holder: int, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, range]]:
        """The rows, in an owner's blocks, that one process holds: parameter and rows, in the blocks' order."""
        for block in blocks.members:
            if self.owners[block.name] != owner:
                continue
            for name in block.parameters:
                p = whole(name)
                if not wanted(p):
                    continue
                length = _length(blocks, p)
                rows, held = rows_of_piece(name) or slice(0, length), shards.rows(length, holder)
                span = range(max(rows.start, held.start), min(rows.stop, held.stop))
                if span:
                    yield p, span

    def _shards(self, blocks: Blocks) -> Shards:
        assert blocks.shards is not None, "a model that every process holds whole has no shards"
        return blocks.shards


def _length(blocks: Blocks, p: str) -> int:
    return blocks.parameters[p].shape[0]


def _within(span: range, start: int) -> slice:
    """Rows of a parameter as rows of a shard that begins at ``start``."""
    return slice(span.start - start, span.stop - start)


def _flat(t: Tensor) -> Tensor:
    return t.reshape(-1)


def _dtype(tensors: Mapping[str, Tensor], blocks: Blocks) -> torch.dtype:
    """The one dtype of what is sent."""
    return next((t.dtype for t in tensors.values()), blocks.like.dtype)
