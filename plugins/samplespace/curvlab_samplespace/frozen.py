"""Fast natural gradient: weights of examples that are averaged over the first steps and then kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault, naming_block
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Count, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab_samplespace.jacobian import Jacobian
from curvlab_samplespace.layer_space import kernel_solve

PART = "frozen-coefficients"


@dataclass
class FrozenState:
    """Weights of slots by block, ``[rounds, slots]``, and how many batches each round has averaged."""

    weights: dict[str, Tensor]
    observed: list[int]
    step: int = 0
    jacobian: Jacobian | None = field(default=None, metadata={"transient": "step"})


@dataclass(frozen=True)
class FrozenCoefficients(Preconditioner[FrozenState]):
    """FNGD: ``x_l = (1/n) Σ_i w_li g_li`` with a weight for every layer l and slot i of a batch.

    The natural gradient of a layer is such a sum with ``w = √n (K_l + λI)⁻¹ r``.  In the first ``warmup``
    steps these weights are computed, as by ``layer-space``, and used; afterwards their averages are, and no
    system is solved (arXiv 2403.03473).  ``slots`` says what a weight belongs to.  "batch" averages over
    batches by the position in a batch.  "epoch" keeps a weight for each position of each of the ``warmup``
    batches; it needs a sampler that repeats its batches in order (``sequential``) and ``warmup`` as the
    number of batches of an epoch.  With batches that are shuffled the averages of all positions tend to one
    number: stochastic gradients with a rate for each layer.

    ``size`` is the largest batch; further examples get the mean weight.  State: ``size`` numbers a layer,
    times ``warmup`` for "epoch".  A later step costs what a weighted backward pass does.
    """

    warmup: Count = 100
    slots: Literal["batch", "epoch"] = "batch"
    size: Count = 1024
    relative: bool = True

    varying = True  # the weights combine the batch's own gradients, whatever vector is given

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(layers=frozenset({Labels.DATA}), examples=True)

    def joins(self, layer: str) -> bool:
        return True

    def refuses(self, block: Block) -> str | None:
        return block.refusal(tied=False)

    def init(self, like: BlockVector, ctx: Context) -> FrozenState:
        rounds = self.warmup if self.slots == "epoch" else 1
        empty = ctx.like(like, "factors")
        return FrozenState({name: empty.new_zeros(rounds, self.size) for name in like}, [0] * rounds)

    def observe(self, state: FrozenState, seen: Evaluation, ctx: Context) -> None:
        if seen.beside is not None:
            raise ConfigError(
                Fault(
                    f"{PART} sums weighted gradients of examples, and a callback adds a penalty or"
                    " restricts gradients, which no weights of examples express",
                    path="callbacks",
                    hint="remove the callback, or use a method that preconditions the gradient, such as kfac",
                )
            )
        state.jacobian = Jacobian.of(seen, Labels.DATA, PART)

    def refresh(self, state: FrozenState, ctx: Context) -> None:
        if state.step >= self.warmup:
            return
        J, k = state.jacobian, self._round(state)
        assert J is not None, "refresh comes after observe"
        n = J.rows
        if n > self.size:
            raise ConfigError(
                Fault(
                    f"{PART}: a batch has {n} examples and there are {self.size} slots",
                    hint=f"set size = {n}",
                )
            )
        state.observed[k] += 1
        share = 1.0 / state.observed[k]
        r = J.like.new_full((n,), n**-0.5)
        for name, weights in state.weights.items():
            mine = J.block(name)
            with naming_block(name):
                w, _ = kernel_solve(mine, r, ctx.damping, self.relative, PART)
            fresh = w * n**0.5
            ctx.storage.updated_(weights[k, :n], lambda old: old.lerp_(fresh.to(old.dtype), share))  # noqa: B023

    def apply(self, state: FrozenState, v: BlockVector, ctx: Context) -> Solve:
        J = state.jacobian
        assert J is not None, "apply comes after observe"
        k, n = self._round(state), J.rows
        x = v.zeros_like()
        for name, weights in state.weights.items():
            w = weights[k, :n].to(J.like.dtype)
            if len(w) < n:
                w = torch.cat([w, w.mean().expand(n - len(w))])
            x[name].copy_(J.block(name).transposed(w * n**-0.5)[name])
        return Solve(x)

    def learn(self, state: FrozenState, what: object, ctx: Context) -> tuple[()]:
        state.step += 1
        return ()

    def _round(self, state: FrozenState) -> int:
        return state.step % self.warmup if self.slots == "epoch" else 0
