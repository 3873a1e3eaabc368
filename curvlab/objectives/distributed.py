"""The objective of several processes: each has some of the examples, and all of them know the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.model.sharding import group_of
from curvlab.objectives.ranks import Ranks
from curvlab.protocols.blocks import Blocks, as_real
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Layers, LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.objective import Objective, Purpose
from curvlab.protocols.shards import Shards

#: a factor this close to 1 is rounding
SAME = 1e-12


class DistributedObjective(Objective):
    """``mine``, an objective on this rank's examples, as part of the mean over those of all ranks.

    Losses, gradients and products are weighted sums over ranks; layer statistics are the rows of all of
    them.  On the same examples it is what one process would find, up to the rounding of sums and to
    sampled labels, which every rank draws for itself.  With ``owners``, a rank for each block, only that rank
    gets the rows of a block.  Raises ``ConfigError`` for the variance of
    gradients, which cannot be had of ranks' own.
    """

    def __init__(self, mine: Objective, ranks: Ranks, owners: Mapping[str, int] | None = None) -> None:
        self.mine, self.ranks, self.owners = mine, ranks, owners
        #: of each sample that was asked for: what this rank's mean is over, and what that of all ranks is
        self._total_weights: dict[Purpose, tuple[float, float]] = {}

    def __call__(self) -> Float[Tensor, ""]:
        raise ConfigError(
            Fault(
                "an objective over several processes cannot be called as a closure",
                hint="pass it to optimizer.step(), or use loss.backward() with DistributedDataParallel",
            )
        )

    def total_weight(self, purpose: Purpose) -> float:
        return self._of_mine_and_all(purpose)[1]

    def loss(self, at: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
        return self.ranks.sum_(_times(self.mine.loss(at), self._share("acceptance")))

    def differentiate(
        self, at: Mapping[str, Tensor], *, acceptance: bool = False
    ) -> tuple[Float[Tensor, ""], Mapping[str, Tensor]]:
        loss, gradient = self.mine.differentiate(at, acceptance=acceptance)
        share = self._share("acceptance" if acceptance else "gradient")
        reals = [as_real(g) for g in gradient.values()]
        flat = _times(torch.cat([loss.reshape(1), *(g.reshape(-1) for g in reals)]), share)
        value, *parts = torch.split(self.ranks.sum_(flat), [1, *(g.numel() for g in reals)])
        together = {
            n: torch.complex(*t.view(*g.shape, 2).unbind(-1)) if g.is_complex() else t.view_as(g)
            for (n, g), t in zip(gradient.items(), parts, strict=True)
        }
        return value.reshape(()), together

    def start(self, seen: Evaluation) -> Float[Tensor, ""]:
        mine = self.mine.start(seen)
        if mine is seen.loss:  # nothing was evaluated, and what was seen is of all ranks already
            return mine
        return self.ranks.sum_(_times(mine, self._share("acceptance")))

    def cast(self, dtype: torch.dtype) -> DistributedObjective | None:
        other = self.mine.cast(dtype)
        return None if other is None else DistributedObjective(other, self.ranks, self.owners)

    def evaluate(self, needs: Needs, blocks: Blocks, ctx: Context) -> Evaluation:
        if needs.variance:
            raise ConfigError(
                Fault(
                    "the sampler needs the variance of gradients, which several processes do not compute",
                    hint='use a sampler that does not need it, such as "geometric"',
                )
            )
        if needs.every_block:
            raise ConfigError(
                Fault(
                    "the method needs the rows of every residual, which several processes do not exchange",
                    hint="train in one process, or use a method without a kernel of examples, such as kfac",
                )
            )
        if Labels.MODEL in needs.layers:
            ctx = replace(ctx, generator=self.ranks.own(ctx.generator))
        seen = self.mine.evaluate(needs, blocks, ctx)
        if any(len(terms) > 1 for found in seen.layers.values() for terms in found.values()):
            raise ConfigError(
                Fault(
                    "the loss has several terms, and several processes join the rows of one alone",
                    hint="train in one process, or use a method that reads no layers, such as soap",
                )
            )
        asked: tuple[Purpose, ...] = ("gradient", "curvature") if needs.ggn else ("gradient",)
        of_ranks = self.ranks.each(_Told.of(seen, blocks, [*map(self.mine.total_weight, asked)]))
        for k, purpose in enumerate(asked):
            of_all = sum(told.total_weights[k] for told in of_ranks)
            self._total_weights[purpose] = self.mine.total_weight(purpose), of_all
        examples = sum(told.examples for told in of_ranks)
        blocks.untapped.update(name for told in of_ranks for name in told.untapped)
        share = self._share("gradient")
        gradient = seen.gradient.owned()
        self.ranks.sum_(_times(gradient.flat, share))
        if blocks.shards is not None:  # what is not of its blocks a process needs no more
            gradient = gradient.restrict(self._own(blocks).layout)
        thinned = _thinned(_Told.of(seen, blocks, []), of_ranks)
        layers = _scaled(seen.layers, share * examples / seen.examples, thinned, blocks.untapped)
        ggn = seen.ggn
        return replace(
            seen,
            examples=examples,
            loss=self.ranks.sum_(_times(seen.loss.clone(), share)),
            gradient=gradient,
            layers=self.ranks.joined(layers, self.owners) if needs.layers else layers,
            ggn=None if ggn is None else DistributedProducts(ggn, self.ranks, self._share("curvature")),
            curvature_examples=sum(told.curvature_examples for told in of_ranks),
            absent=frozenset.intersection(*(told.absent for told in of_ranks)),
        )

    def _own(self, blocks: Blocks) -> Blocks:
        assert self.owners is not None, "a model in shards has owners"
        return blocks.select([b.name for b in blocks.members if self.owners[b.name] == self.ranks.rank])

    def _share(self, purpose: Purpose) -> float:
        mine, of_all = self._of_mine_and_all(purpose)
        return mine / of_all if of_all else math.nan  # a mean of nothing is 0/0 in one process, too

    def _of_mine_and_all(self, purpose: Purpose) -> tuple[float, float]:
        if purpose not in self._total_weights:
            mine = self.mine.total_weight(purpose)
            self._total_weights[purpose] = mine, sum(self.ranks.each(mine))
        return self._total_weights[purpose]


@dataclass(frozen=True)
class _Told:
    """What the other ranks must know of one rank's pass; ``rows`` are those of each block's statistics."""

    examples: int
    curvature_examples: int
    untapped: tuple[str, ...]
    absent: frozenset[str]
    rows: Mapping[str, int]
    total_weights: Sequence[float]

    @classmethod
    def of(cls, seen: Evaluation, blocks: Blocks, total_weights: Sequence[float]) -> _Told:
        rows = {
            name: sum(len(s.inputs) for s in terms)
            for found in seen.layers.values()
            for name, terms in found.items()
        }
        untapped = tuple(sorted(blocks.untapped))
        return cls(seen.examples, seen.curvature_examples, untapped, seen.absent, rows, total_weights)


def _thinned(mine: _Told, of_ranks: Sequence[_Told]) -> dict[str, float]:
    """What this rank's gradient rows are multiplied by, where blocks have other numbers of rows per example.

    They carry √(rows/examples) of this rank, and must carry that of all ranks.
    """
    examples = sum(t.examples for t in of_ranks)
    found = {}
    for name, rows in mine.rows.items():
        everywhere = sum(t.rows.get(name, 0) for t in of_ranks)
        found[name] = (everywhere / examples * mine.examples / rows) ** 0.5 if rows else 1.0
    return found


def require_alike(model: nn.Module, ranks: Ranks | None, shards: Shards | None = None) -> Ranks | None:
    """The ranks, if there are several: they must start from one model.

    Raises ``ConfigError`` for a wrapper around a model, for ranks that start from different parameters, and
    for ranks other than those that a model's shards are on.
    """
    if isinstance(model, DistributedDataParallel):
        raise ConfigError(
            Fault(
                "the model is wrapped in DistributedDataParallel; expected the model inside",
                hint="pass model.module to curvlab.optimizer",
            )
        )
    if shards is not None:
        return _of_shards(model, ranks)
    if ranks is None or ranks.size == 1:
        return None
    ranks.require_same(
        "the model's parameters",
        model.parameters(),
        "use one seed or load one state_dict on all ranks; pass group=None if each rank has its own model",
    )
    return ranks


def _of_shards(model: nn.Module, ranks: Ranks | None) -> Ranks:
    theirs = dist.get_process_group_ranks(group_of(model))
    mine = None if ranks is None else dist.get_process_group_ranks(ranks.group)
    if ranks is None or theirs != mine:
        asked = "this process alone (group=None)" if mine is None else f"processes {mine}"
        raise ConfigError(
            Fault(
                f"the model's parameters are in shards over processes {theirs}; the optimizer is for {asked}",
                hint="pass the group of the mesh that fully_shard got",
            )
        )
    return ranks


@dataclass
class DistributedProducts(LinearOperator[BlockVector]):
    """The weighted sum over ranks of products with each rank's own operator."""

    mine: LinearOperator[BlockVector]
    ranks: Ranks
    share: float
    count: int = 0

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        product = self.mine @ v
        self.ranks.sum_(_times(product.flat, self.share))
        return product


def _scaled(layers: Layers, scale: float, thinned: Mapping[str, float], without: set[str]) -> Layers:
    """Rows of un-averaged losses whose weights are ``scale`` times as large among all ranks.

    A gradient is proportional to its example's weight; of drawn and exact labels the squares of rows are,
    which are the example's curvature.
    """

    def scaled(kind: Labels, name: str, s: LayerStats) -> LayerStats:
        factor = (scale if kind is Labels.DATA else scale**0.5) * thinned[name]
        if s.grads is None or abs(factor - 1) < SAME:
            return s
        return replace(s, grads=_times(s.grads.clone(), factor))

    return {
        kind: {
            name: tuple(scaled(kind, name, s) for s in terms)
            for name, terms in found.items()
            if name not in without
        }
        for kind, found in layers.items()
    }


def _times(t: Tensor, share: float) -> Tensor:
    """t times a rank's share, in place; nothing of a rank without any, whose own mean is 0/0."""
    return t.mul_(share) if share else t.zero_()
