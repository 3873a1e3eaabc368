"""Several processes that train one model: what each saw of its own examples becomes what all of them saw.

Every rank then learns the same, decides the same and writes the same parameters; nothing of a method's
state is ever sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from curvlab.errors import ConfigError, Fault, UnsupportedEvidence
from curvlab.linalg.lookups import Lookups
from curvlab.protocols.evidence import Layers, LayerStats
from curvlab.protocols.needs import Labels


class _Entry(NamedTuple):
    """One layer's statistics for one loss term; places of its tensors among those that are sent."""

    kind: Labels
    block: str
    term: int
    inputs: int
    grads: int | None
    one_hot: tuple[int, torch.dtype] | None  #: of lookups, whose indices are sent: their dimension and dtype


@dataclass(frozen=True)
class Ranks:
    """The processes of a ``torch.distributed`` group; each makes the same calls in the same order."""

    group: Any

    @property
    def size(self) -> int:
        """How many there are."""
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Which one this is, from 0."""
        return dist.get_rank(self.group)

    @property
    def is_world(self) -> bool:
        """Whether these are all processes that there are."""
        return self.group is dist.group.WORLD

    @property
    def device(self) -> torch.device:
        """Where a small tensor must be to be sent: CUDA's present device under NCCL, else the host."""
        cuda = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")

    def largest_(self, t: Tensor) -> Tensor:
        """The largest of all ranks, entry by entry, in place."""
        dist.all_reduce(t, op=dist.ReduceOp.MAX, group=self.group)
        return t

    def from_(self, rank: int, t: Tensor) -> Tensor:
        """What that rank has, in place."""
        dist.broadcast(t, group_src=rank, group=self.group)
        return t

    def sum_(self, t: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        dist.all_reduce(t, group=self.group)
        return t

    def each(self, value: Any) -> list[Any]:
        """What every rank has; small plain values."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found

    def collected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all ranks by name, on rank 0; those of one name are the same, and sent once.

        A message for each name that rank 0 does not have.  Other ranks get their own.
        """
        found = dict(tensors)
        headers = self.each({n: (t.shape, t.stride(), t.dtype) for n, t in tensors.items()})
        for rank, theirs in enumerate(headers):
            for name, (shape, stride, dtype) in theirs.items():
                if name in headers[0] or any(name in earlier for earlier in headers[:rank]):
                    continue
                if self.rank == rank:
                    dist.send(tensors[name].contiguous(), group=self.group, group_dst=0)
                elif self.rank == 0:
                    like = torch.empty_strided(shape, stride, dtype=dtype, device=self.device)
                    got = torch.empty(shape, dtype=dtype, device=self.device)
                    dist.recv(got, group=self.group, group_src=rank)
                    found[name] = like.copy_(got)
        return found

    def require_same(self, what: str, tensors: Iterable[Tensor], hint: str) -> None:
        """Raises ``ConfigError`` unless these are bit for bit the same on all ranks."""
        digest = hashlib.sha256()
        for t in tensors:
            digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        others = [r for r, theirs in enumerate(self.each(digest.hexdigest())) if theirs != digest.hexdigest()]
        if others:
            ranks = ", ".join(map(str, others))
            raise ConfigError(
                Fault(f"{what} of rank {self.rank} differ from those of rank {ranks}", hint=hint)
            )

    def own(self, generator: torch.Generator) -> torch.Generator:
        """Random numbers that are another rank's nowhere; ``generator`` moves on alike on all of them."""
        drawn = torch.randint(2**62, (), generator=generator, device=generator.device)
        return torch.Generator(device=generator.device).manual_seed(int(drawn) + self.rank)

    def joined(self, layers: Layers, owners: Mapping[str, int] | None = None) -> Layers:
        """The rows of all ranks, in the order of ranks.  One message for each dtype, and one of shapes.

        With ``owners``, a rank for each block, the rows of a block are sent to that rank alone, and this one
        gets those of its own blocks.  Raises ``UnsupportedEvidence`` if ranks saw different numbers of
        positions.
        """
        tensors, entries = _listed(layers, owners or {})
        headers = self.each((entries, [(t.shape, t.dtype) for t in tensors]))
        shapes_of_ranks = [shapes for _, shapes in headers]
        _require_alike(headers)
        if owners is None:
            sent = self._exchanged(tensors, shapes_of_ranks)
        else:
            homes = [_homes(theirs, owners, len(shapes)) for theirs, shapes in headers]
            sent = self._delivered(tensors, shapes_of_ranks, homes)
        parts: dict[tuple[Labels, str, int], list[tuple[Tensor, Tensor | None]]] = {}
        one_hot = {}
        for (theirs, _), got in zip(headers, sent, strict=True):
            for kind, block, term, inputs, grads, lookups in theirs:
                if owners is not None and owners[block] != self.rank:
                    continue
                one_hot[kind, block, term] = lookups
                pair = got[inputs], None if grads is None else got[grads]
                parts.setdefault((kind, block, term), []).append(pair)
        found: dict[Labels, dict[str, tuple[LayerStats, ...]]] = {kind: {} for kind in layers}
        for (kind, block, term), pieces in parts.items():
            inputs = torch.cat([x for x, _ in pieces])
            lookups = one_hot[kind, block, term]
            stats = LayerStats(
                inputs if lookups is None else Lookups(inputs, *lookups),
                None if pieces[0][1] is None else torch.cat([g for _, g in pieces if g is not None], 1),
            )
            found[kind][block] = (*found[kind].get(block, ()), stats)
        return found

    def _exchanged(
        self, tensors: Sequence[Tensor], of_ranks: Sequence[Sequence[tuple[torch.Size, torch.dtype]]]
    ) -> list[list[Tensor]]:
        """Every rank's tensors, given all their shapes."""
        found: list[list[Tensor]] = [[torch.empty(0, device="cpu")] * len(shapes) for shapes in of_ranks]
        for dtype in sorted({d for shapes in of_ranks for _, d in shapes}, key=str):
            lengths = [sum(s.numel() for s, d in shapes if d == dtype) for shapes in of_ranks]
            mine = [t.reshape(-1) for t in tensors if t.dtype == dtype]
            device = tensors[0].device if tensors else torch.device("cpu")
            buffer = torch.zeros(max(lengths), dtype=dtype, device=device)
            torch.cat([*mine, buffer.new_empty(0)], out=buffer[: lengths[self.rank]])
            buffers = [torch.empty_like(buffer) for _ in of_ranks]
            dist.all_gather(buffers, buffer, group=self.group)
            for got, shapes, theirs in zip(found, of_ranks, buffers, strict=True):
                start = 0
                for place, (shape, d) in enumerate(shapes):
                    if d == dtype:
                        got[place] = theirs[start : start + shape.numel()].view(shape)
                        start += shape.numel()
        return found

    def _delivered(
        self,
        tensors: Sequence[Tensor],
        of_ranks: Sequence[Sequence[tuple[torch.Size, torch.dtype]]],
        homes: Sequence[Sequence[int]],
    ) -> list[list[Tensor]]:
        """Every rank's tensors whose home is here, given all shapes and homes; others' places stay empty."""
        found: list[list[Tensor]] = [[torch.empty(0, device="cpu")] * len(shapes) for shapes in of_ranks]
        device = tensors[0].device if tensors else self.device
        for dtype in sorted({d for shapes in of_ranks for _, d in shapes}, key=str):

            def places(rank: int, home: int, dtype: torch.dtype = dtype) -> list[int]:
                there = zip(of_ranks[rank], homes[rank], strict=True)
                return [k for k, ((_, d), h) in enumerate(there) if d == dtype and h == home]

            leaving = [places(self.rank, r) for r in range(self.size)]
            coming = [places(r, self.rank) for r in range(self.size)]
            out = [tensors[k].reshape(-1) for some in leaving for k in some]
            sizes = [[of_ranks[r][k][0].numel() for k in some] for r, some in enumerate(coming)]
            buffer = torch.empty(sum(map(sum, sizes)), dtype=dtype, device=device)
            dist.all_to_all_single(
                buffer,
                torch.cat([*out, buffer.new_empty(0)]),
                output_split_sizes=[sum(s) for s in sizes],
                input_split_sizes=[sum(tensors[k].numel() for k in some) for some in leaving],
                group=self.group,
            )
            start = 0
            for rank, some in enumerate(coming):
                for k in some:
                    shape = of_ranks[rank][k][0]
                    found[rank][k] = buffer[start : start + shape.numel()].view(shape)
                    start += shape.numel()
        return found


def _homes(entries: Sequence[_Entry], owners: Mapping[str, int], tensors: int) -> list[int]:
    """The rank that each of a rank's tensors goes to."""
    found = [0] * tensors
    for entry in entries:
        for place in (entry.inputs, entry.grads):
            if place is not None:
                found[place] = owners[entry.block]
    return found


@dataclass(frozen=True)
class PlannedRanks(Ranks):
    """Processes that are not there: how many, and which one this would be.  They send nothing."""

    group: Any = None
    planned: int = 1
    me: int = 0

    @property
    def size(self) -> int:
        return self.planned

    @property
    def rank(self) -> int:
        return self.me


def ranks_of(group: Any) -> Ranks | None:
    """The processes of a group; ``"world"``: all there are, if ``torch.distributed`` is initialized.

    ``None`` for ``None``: this process alone.  Raises ``ConfigError`` for another word.
    """
    if not isinstance(group, str):
        return None if group is None else Ranks(group)
    if group != "world":
        raise ConfigError(Fault(f"unknown group = {group!r}", hint='pass a process group, "world", or None'))
    return Ranks(dist.group.WORLD) if dist.is_available() and dist.is_initialized() else None


def _listed(layers: Layers, owners: Mapping[str, int]) -> tuple[list[Tensor], list[_Entry]]:
    """The tensors of layer statistics, each once (for each owner), and where they belong."""
    tensors: list[Tensor] = []
    places: dict[tuple[Any, ...], int] = {}

    def place(t: Tensor, block: str) -> int:
        key = t.data_ptr(), t.dtype, t.shape, t.stride(), owners.get(block)
        if key not in places:  # the inputs are the same for every kind of labels
            places[key] = len(tensors)
            tensors.append(t)
        return places[key]

    entries = [
        _Entry(
            kind,
            block,
            k,
            place(s.inputs.index if isinstance(s.inputs, Lookups) else s.inputs, block),
            None if s.grads is None else place(s.grads, block),
            (s.inputs.d, s.inputs.dtype) if isinstance(s.inputs, Lookups) else None,
        )
        for kind, blocks in layers.items()
        for block, terms in blocks.items()
        for k, s in enumerate(terms)
    ]
    return tensors, entries


def _require_alike(
    headers: Sequence[tuple[Sequence[_Entry], Sequence[tuple[torch.Size, torch.dtype]]]],
) -> None:
    """Raise ``UnsupportedEvidence`` on every rank if rows of some ranks cannot stand beside others'."""
    found: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for entries, shapes in headers:
        for entry in entries:
            inputs = shapes[entry.inputs][0]
            found.setdefault((entry.block, "inputs"), set()).add(tuple(inputs[1:]))
            if entry.grads is not None:
                grads = shapes[entry.grads][0]
                found.setdefault((entry.block, entry.kind.value), set()).add((grads[0], *grads[2:]))
    for (block, _), rest in found.items():
        if len(rest) > 1:
            raise UnsupportedEvidence(
                "layer statistics",
                block,
                expected="the same number of positions on every rank",
                got=" and ".join(str(shape) for shape in sorted(rest)),
                hint="pad the batches of a step to the same length on all ranks",
            )
