"""What processes send each other of a sharded model: rows of parameters and gradients, to owners and back."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.ranks import Ranks
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.pieces import index_of_piece, whole

#: a parameter, and some of its rows
Span = tuple[str, range]


@dataclass(frozen=True)
class ShardTraffic:
    """Between the shards of a model and the owners of its blocks; ``owners`` gives the rank of each block.

    One message a call.  Every process makes the same calls with the same blocks and the same names.
    """

    ranks: Ranks
    owners: Mapping[str, int]

    @torch.no_grad()
    def to_owners(self, blocks: Blocks, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this process's blocks with all rows, from the rows that every process has of them.

        ``mine`` are this process's rows by parameter.  In a parameter in pieces, the rows of other owners'
        pieces are zero.  A process sends its rows of the blocks that it does not own.
        """
        me, all_ranks = self.ranks.rank, range(self.ranks.size)
        leaving = [self._spans(blocks, owner, me, mine) for owner in all_ranks]
        coming = [self._spans(blocks, me, holder, mine) for holder in all_ranks]
        found = {
            p: torch.zeros(blocks.parameters[p].shape, dtype=mine[p].dtype, device=mine[p].device)
            for p in dict.fromkeys(p for spans in coming for p, _ in spans)
        }
        for p, span, rows in self._exchanged(
            blocks, leaving, coming, lambda p, span: mine[p][self._in_shard(blocks, p, span)]
        ):
            found[p][span.start : span.stop] = rows
        return found

    @torch.no_grad()
    def to_shards(self, blocks: Blocks, values: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> None:
        """Write the rows of every process, from the owners of the blocks.

        ``values`` are the parameters of this process's blocks with all rows; ``mine`` this process's rows,
        in place, of the parameters that are written.  A process sends those rows of its blocks that others
        hold.
        """
        me, all_ranks = self.ranks.rank, range(self.ranks.size)
        leaving = [self._spans(blocks, me, holder, mine) for holder in all_ranks]
        coming = [self._spans(blocks, owner, me, mine) for owner in all_ranks]
        for p, span, rows in self._exchanged(
            blocks, leaving, coming, lambda p, span: values[p][span.start : span.stop]
        ):
            mine[p][self._in_shard(blocks, p, span)] = rows

    def _exchanged(
        self,
        blocks: Blocks,
        leaving: Sequence[Sequence[Span]],
        coming: Sequence[Sequence[Span]],
        rows: Callable[[str, range], Tensor],
    ) -> Iterator[tuple[str, range, Tensor]]:
        """What comes of each rank, given what goes to each; ``rows`` reads what goes."""

        def shape(p: str, span: range) -> torch.Size:
            return torch.Size((len(span), *blocks.parameters[p].shape[1:]))

        def sizes(of_ranks: Sequence[Sequence[Span]]) -> list[int]:
            return [sum(shape(p, span).numel() for p, span in spans) for spans in of_ranks]

        like = next(iter(blocks.parameters.values()))
        empty = torch.empty(0, dtype=like.dtype, device=like.device)  # all trained parameters are alike
        out = torch.cat([*(rows(p, span).reshape(-1) for spans in leaving for p, span in spans), empty])
        buffer = out.new_empty(sum(sizes(coming)))
        dist.all_to_all_single(
            buffer,
            out,
            output_split_sizes=sizes(coming),
            input_split_sizes=sizes(leaving),
            group=self.ranks.group,
        )
        start = 0
        for p, span in (each for spans in coming for each in spans):
            stop = start + shape(p, span).numel()
            yield p, span, buffer[start:stop].view(shape(p, span))
            start = stop

    def _spans(self, blocks: Blocks, owner: int, holder: int, wanted: Container[str]) -> list[Span]:
        """The rows, of an owner's blocks, that one process holds, in the blocks' order."""
        assert blocks.shards is not None, "a model that every process holds whole has no shards"
        found = []
        for block in blocks.members:
            for name in block.parameters if self.owners[block.name] == owner else ():
                p = whole(name)
                length = blocks.parameters[p].shape[0]
                rows, held = _rows(name, length), blocks.shards.rows(length, holder)
                span = range(max(rows.start, held.start), min(rows.stop, held.stop))
                if p in wanted and span:
                    found.append((p, span))
        return found

    def _in_shard(self, blocks: Blocks, p: str, span: range) -> slice:
        """Rows of a parameter as rows of this process's shard of it."""
        assert blocks.shards is not None
        start = blocks.shards.rows(blocks.parameters[p].shape[0], self.ranks.rank).start
        return slice(span.start - start, span.stop - start)


def _rows(name: str, length: int) -> range:
    """The rows that a parameter, or a piece of one, has of a parameter of so many."""
    first, *others = index_of_piece(name) or (slice(None),)
    if others:
        what = f"{name} is a part of a parameter along other axes than its rows, by which fully_shard cuts it"
        raise ConfigError(Fault(what, hint="train with DistributedDataParallel"))
    return range(*first.indices(length))
