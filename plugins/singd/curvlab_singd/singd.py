"""Preconditioner: inverse-free Kronecker factors in structured matrix groups."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

import torch

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.lookups import rearranged
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Count, Fraction, Limit, Natural, NotNegative, check_bounds
from curvlab.protocols.cadence import Interval, interval_at, is_due
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.rows import Rows, Sharing, rows_of
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.structure import Family, Group, as_group
from curvlab.structures.inputs import family_of_inputs
from curvlab.structures.work import work_of_pair
from curvlab_singd.update import PART, Coupling, Factors, Rule, fit, update

#: steps after which the peaks of the whitened curvature are measured again, unless updates are rarer
PEAK_EVERY = 10


@dataclass
class SingdState:
    """Factors by block.  Blocks of one shape are views of one stack, updated together."""

    blocks: dict[str, Factors]
    stacks: list[Stack] = field(default_factory=list, metadata={"transient": True})


@dataclass(frozen=True)
class Stack:
    """Blocks of one shape, side by side in memory."""

    names: tuple[str, ...]
    factors: Factors


@dataclass(frozen=True)
class Singd(Preconditioner[SingdState]):
    """``x = (C Cᵀ) g (K Kᵀ)`` with K, C moved towards ``(B ⊗ A + λI)^{-1/2}`` by products alone.

    SINGD (Lin et al. 2024, arXiv 2312.05705); with dense K and C, INGD (Lin et al. 2023, arXiv
    2302.09738).

    ``coupling`` says how the two sides weigh each other: "mean" is INGD's and SINGD's rule, "none"
    IKFAC's, whose ``K Kᵀ`` follows ``(A + λI)⁻¹`` and ``C Cᵀ`` ``(B + λI)⁻¹``; "peak" comes to SINGD's
    fixed point (exactly, where λ = 0) without overshooting on the way (``update``), and measures what it
    needs for that about every ten steps.  λ acts on the Kronecker product, with "none" on each factor.

    Every ``every``-th step, the first included, the batch's rows update K and C before they are
    applied.  ``lr`` is β₁, ``momentum`` α₁ of the factors' log-space steps; without an ``lr`` β₁ is
    ``0.01 every``, at most 0.1: factors then remember as many steps however often they are updated.  No
    update changes a direction of a factor by more than about the fraction ``limit``.  The first
    observation is fitted by ``fit`` Newton-Schulz iterations; 0 starts from K = C = I and leaves it to the
    updates, as the paper does.  ``order`` truncates the exponential.  ``relative``: λ is in units of the
    block's mean curvature on each batch; with a fitted start the direction then is the same whatever the
    scale of the loss.

    State: K and C, and as much again with momentum.  Cost of an update with dense factors, r rows:
    ``2 r d² + 2 r d² + 4 d³`` flops each; of an application, two products with each factor.
    """

    separable = True

    K: Family
    C: Family
    lr: NotNegative | Schedule | None = None
    momentum: Fraction = 0.5
    every: Interval = 1
    coupling: Coupling = "peak"
    labels: Labels = Labels.DATA
    samples: Count = 1
    sharing: Sharing = "auto"
    limit: Limit = 0.5
    fit: Natural = 6
    order: Literal[1, 2] = 1
    relative: bool = False
    tied: bool = False  #: also treat a matrix that is used transposed elsewhere: a head tied to its embedding
    stacked: bool = True  #: update blocks of one shape by one batched product

    def __post_init__(self) -> None:
        as_group(self.K, PART)
        as_group(self.C, PART)
        if self.labels is Labels.NONE:
            raise ConfigError(
                Fault(
                    'labels = "none" gives no output gradients', path="labels", hint='use "data" or "model"'
                )
            )
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        if not is_due(step, self.every):
            return Needs(factored=True)
        return Needs.statistics(self.labels, self.samples, factored=True)

    @property
    def ridged(self) -> bool:
        return self.coupling != "none"

    def joins(self, layer: str) -> bool:
        return True

    def refuses(self, block: Block) -> str | None:
        return block.refusal(tied=self.tied)

    def work(self, block: Block) -> float:
        return work_of_pair(block, self.C, self.K)

    def fallible(self, state: SingdState, step: int) -> bool:
        return is_due(step, self.every)

    def init(self, like: BlockVector, ctx: Context) -> SingdState:
        by_shape: dict[tuple[torch.Size, bool], list[str]] = defaultdict(list)
        for name, shape in like.layout.shapes.items():
            by_shape[shape, name in like.layout.one_hot].append(name)
        groups = list(by_shape.values()) if self.stacked else [[n] for n in like.layout.names]
        state = SingdState({})
        for names in groups:
            stack = Stack(tuple(names), self._fresh(names[0], len(names), like, ctx))
            state.stacks.append(stack)
            state.blocks.update({name: _part(stack.factors, k) for k, name in enumerate(names)})
        return state

    def observe(self, state: SingdState, seen: Evaluation, ctx: Context) -> None:
        if not is_due(ctx.step, self.every):
            return
        layers = seen.layers[self.labels]
        lr = self._lr_at(ctx.step)
        for stack in state.stacks:
            dtype = stack.factors.K.like.dtype
            rows = {
                n: rows_of(PART, n, layers[n], seen, self.sharing, dtype) for n in stack.names if n in layers
            }
            alike = len({ctx.ridge.get(n, 0.0) for n in stack.names}) == 1
            together = self._together(state, stack, rows) if alike else None
            ridge = ctx.ridge.get(stack.names[0], 0.0)
            if together is not None and self._take(together, ctx, lr, ridge):
                for name in rows:
                    state.blocks[name].updates += 1
                continue
            for name, observed in rows.items():  # one by one, too, if one of them is not finite
                ridge = ctx.ridge.get(name, 0.0)
                state.blocks[name].updates += self._take((state.blocks[name], observed), ctx, lr, ridge)

    def _take(self, what: tuple[Factors, Rows], ctx: Context, lr: float, ridge: float) -> bool:
        """Factors take in an observation; false, and nothing has changed, if it is not finite."""
        factors, observed = what
        if self.fit and not factors.updates:
            return fit(factors, observed, ctx.damping, self.fit, self._rule, ctx.storage, ridge)
        measure = (factors.updates - bool(self.fit)) % max(
            PEAK_EVERY // interval_at(self.every, ctx.step), 1
        ) == 0
        return update(
            factors, observed, ctx.damping, lr, self._rule, ctx.storage, measure=measure, ridge=ridge
        )

    def apply(self, state: SingdState, v: BlockVector, ctx: Context) -> Solve:
        blocks = {name: _inverse(f) for name, f in state.blocks.items()}
        return Solve(ctx.product(BlockDiagonal(blocks), v, "inverse_factors"))

    def _lr_at(self, step: int) -> float:
        return min(0.01 * interval_at(self.every, step), 0.1) if self.lr is None else at_step(self.lr, step)

    @property
    def _rule(self) -> Rule:
        return Rule(self.coupling, self.momentum, self.order, self.limit, self.relative)

    def _fresh(self, block: str, count: int, like: BlockVector, ctx: Context) -> Factors:
        """``count`` blocks like this one at the identity, side by side."""
        shape = like.layout.shapes[block]
        K, C = family_of_inputs(self.K, like.layout, block).at(shape[1]), self.C.at(shape[0])
        flat, batch = ctx.like(like, "inverse_factors"), (count,)
        eyes = K.eye(shape[1], like=flat, batch=batch), C.eye(shape[0], like=flat, batch=batch)
        excess = flat.new_ones(batch) if self.coupling == "peak" else None
        if not self.momentum:
            return Factors(*eyes, None, None, excess)
        momenta = K.zeros(shape[1], like=flat, batch=batch), C.zeros(shape[0], like=flat, batch=batch)
        return Factors(*eyes, *momenta, excess)

    def _together(
        self, state: SingdState, stack: Stack, rows: dict[str, Rows]
    ) -> tuple[Factors, Rows] | None:
        """A whole stack and its rows, if there are several blocks and all of them were seen alike."""
        ages = {state.blocks[n].updates for n in stack.names}
        if not (len(stack.names) == len(rows) > 1 and len(ages) == 1 and _alike(list(rows.values()))):
            return None
        stack.factors.updates = ages.pop()
        return stack.factors, _stacked([rows[n] for n in stack.names])


def _inverse(f: Factors) -> Kronecker:
    """``(C Cᵀ) ⊗ (K Kᵀ)``."""
    K, C = f.K.family, f.C.family
    assert isinstance(K, Group)
    assert isinstance(C, Group)
    return Kronecker(C.gramian(f.C), K.gramian(f.K))


def _alike(rows: list[Rows]) -> bool:
    """Whether rows of several blocks have one shape and one weight."""
    return len({(r.a.shape, None if r.g is None else r.g.shape, r.a_weight, r.g_weight) for r in rows}) == 1


def _stacked(rows: list[Rows]) -> Rows:
    g = torch.stack([r.g for r in rows if r.g is not None])
    return Rows(
        rearranged(lambda a: torch.stack([*a]), [r.a for r in rows]), rows[0].a_weight, g, rows[0].g_weight
    )


def _part(f: Factors, k: int) -> Factors:
    """The k-th of stacked factors: views of the same memory."""
    m_K, m_C, excess = f.m_K, f.m_C, f.excess
    return Factors(
        f.K.part(k),
        f.C.part(k),
        None if m_K is None else m_K.part(k),
        None if m_C is None else m_C.part(k),
        None if excess is None else excess[k],
    )
