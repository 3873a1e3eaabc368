"""Preconditioner: inverses of a layer's two Kronecker factors by BFGS."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import naming_block
from curvlab.linalg.averages import newest_weight
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Count, Fraction, Inside, Natural, check_bounds
from curvlab.protocols.cadence import Interval, is_due
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, StepOutcome
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab.protocols.rows import rows_of
from curvlab_kbfgs.blocks import Cut
from curvlab_kbfgs.means import Means, means_of
from curvlab_kbfgs.pair import Pair
from curvlab_kbfgs.sides import LimitedInverse, MatrixInverse, Side

PART = "kbfgs"


@dataclass
class Layer:
    """What is held of one block: A, the inverses of both factors, and the averaged output pair."""

    A: Float[Tensor, "k b b"]  #: moving average of E[aaᵀ], its diagonal blocks
    inputs: MatrixInverse  #: ≈ (A + μ_a I)⁻¹
    outputs: Side  #: ≈ Γ⁻¹
    s: Float[Tensor, " o"]
    y: Float[Tensor, " o"]
    observed: int = 0  #: batches that A averages
    inverted: bool = False  #: whether ``inputs`` began with the inverse of a damped A
    learned: int = 0  #: pairs that ``outputs`` took in


@dataclass
class KbfgsState:
    """By block; ``before`` are the means of this step's batch before the step."""

    layers: dict[str, Layer]
    before: dict[str, Means] = field(default_factory=dict, metadata={"transient": "step"})


@dataclass(frozen=True)
class Kbfgs(Preconditioner[KbfgsState]):
    """``x = H_g g H_a`` with ``H_a ≈ (A + μ_a I)⁻¹`` and ``H_g ≈ Γ⁻¹``, both moved by BFGS.

    K-BFGS (Goldfarb, Ren and Bahamou 2020, arXiv 2006.08877); convolutions after KF-QN-CNN (Ren and
    Goldfarb 2021, arXiv 2102.06737), with the one scale of ``means``.  λ is split: ``μ_a = √λ``, and √λ is
    the least curvature of Γ along a pair.  ``relative``: in units of A's mean eigenvalue and of
    ``‖y‖ / ‖s‖``, which makes directions independent of the scale of the loss.

    Every ``every``-th step A takes in the batch (``decay``), and H_a the pair ``s = H_a ā``,
    ``y = (A + μ_a I) s``.  The first H_a is the inverse itself.  After the step the batch is evaluated
    again: changes of the mean pre-activation and of the loss's slope in it, averaged with ``pair_decay``,
    are the pair of H_g, which ``double_damped`` makes admissible (``powell``: the least sᵀy over yᵀH y).
    A pair that is not finite, or zero, is left out.

    Factors are matrices up to dimension ``dense``; above, their diagonal blocks of at most ``size``, each
    with its own part of a pair.  With ``memory`` the output side is that many pairs instead.  Costs a second
    forward and backward pass, ``2 r i b`` flops for A and ``10 i b + 10 o b`` for pairs, b being the
    dimension of a block, and no factorization after the first step.  State: ``2 i b + o b`` scalars a layer,
    or ``2 i b + 2 m o`` with m pairs.
    """

    dense: Natural = 4096
    size: Count = 64
    memory: Natural = 0
    probes: Count = 1  #: pairs of H_a a step
    every: Interval = 1
    decay: Fraction = 0.9
    pair_decay: Fraction = 0.9
    powell: Inside = 0.2
    relative: bool = False
    tied: bool = False  #: also treat a matrix that is used transposed elsewhere: a head tied to its embedding

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        if not is_due(step, self.every):
            return Needs(factored=True)
        return Needs.statistics(Labels.DATA, factored=True) | Needs(after=True)

    def joins(self, layer: str) -> bool:
        return True

    def refuses(self, block: Block) -> str | None:
        if block.one_hot:
            return "its inputs are one-hot, and kbfgs has no diagonal factor of inputs"
        return block.refusal(tied=self.tied)

    def fallible(self, state: KbfgsState, step: int) -> bool:
        return is_due(step, self.every) and not all(layer.inverted for layer in state.layers.values())

    def init(self, like: BlockVector, ctx: Context) -> KbfgsState:
        work, factors = ctx.like(like, "work"), ctx.like(like, "factors")
        layers = {}
        for name, (o, i) in like.layout.shapes.items():
            rows, columns = self._cut(o), self._cut(i)
            outputs: Side = MatrixInverse.identity(rows, work)
            if self.memory:
                outputs = LimitedInverse.identity(o, self.memory, work)
            A, inputs = torch.zeros_like(columns.eye(factors)), MatrixInverse.identity(columns, work)
            layers[name] = Layer(A, inputs, outputs, work.new_zeros(o), work.new_zeros(o))
        return KbfgsState(layers)

    def _cut(self, d: int) -> Cut:
        return Cut.of(d, self.dense, self.size)

    def observe(self, state: KbfgsState, seen: Evaluation, ctx: Context) -> None:
        if not is_due(ctx.step, self.every):
            return
        assert seen.theta is not None, "what is asked for by Needs.after has parameters"
        theta = seen.theta()
        for name, terms in seen.layers[Labels.DATA].items():
            layer = state.layers[name]
            found = means_of(terms, theta[name], seen)
            if found is not None:
                state.before[name] = found
                rows = rows_of(PART, name, terms, seen, "expand", layer.s.dtype)
                assert isinstance(rows.a, Tensor), "a layer of lookups is refused"
                self._learn_inputs(layer, rows.a, rows.a_weight, ctx)

    def _learn_inputs(self, layer: Layer, X: Float[Tensor, "r i"], weight: float, ctx: Context) -> None:
        """A, and once H_a has begun, its pair."""
        layer.observed += 1
        w, cut = newest_weight(self.decay, layer.observed), layer.inputs.cut

        def average(A: Tensor) -> None:
            if cut.blocks == 1:
                ctx.backend.gram_(A[0], 1 - w, X.to(A.dtype), w * weight)
            else:
                A.mul_(1 - w).add_(cut.gram(X.to(A.dtype)), alpha=w * weight)

        A = ctx.storage.updated_(layer.A, average).to(X.dtype)
        if layer.inverted:
            for x in self._probes(X, ctx):
                s = layer.inputs.along(x)
                layer.inputs.learn_(Pair(s, cut.products(A, s) + self._shift(A, cut, ctx) * s))

    def _probes(self, X: Float[Tensor, "r i"], ctx: Context) -> Float[Tensor, "p i"]:
        """The mean row, and sums of the rows with random signs."""
        weights = X.new_ones(self.probes, len(X))
        if self.probes > 1:
            signs = torch.randint(0, 2, (self.probes - 1, len(X)), generator=ctx.generator, device=X.device)
            weights[1:] = 2.0 * signs - 1.0
        return weights @ X / len(X)

    def _shift(self, A: Float[Tensor, "k b b"], cut: Cut, ctx: Context) -> Tensor:
        """μ_a; in units of A's mean eigenvalue, or of 1 where there is none."""
        mean = A.diagonal(dim1=-2, dim2=-1).sum() / cut.d
        one = torch.ones_like(mean)
        root = float(ctx.damping**0.5)
        return (torch.where(mean > 0, mean, one) if self.relative else one) * root

    def refresh(self, state: KbfgsState, ctx: Context) -> None:
        for name, layer in state.layers.items():
            if layer.inverted or not layer.observed:
                continue
            A, H = layer.A.to(layer.s.dtype), layer.inputs
            with naming_block(name):
                H.H.copy_(ctx.backend.inverse(A, self._shift(A, H.cut, ctx)))
            layer.inverted = True

    def apply(self, state: KbfgsState, v: BlockVector, ctx: Context) -> Solve:
        blocks = {name: Kronecker(layer.outputs, layer.inputs) for name, layer in state.layers.items()}
        return Solve(ctx.product(BlockDiagonal(blocks), v, "work"))

    def learn(self, state: KbfgsState, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        if what.after is None or what.after.theta is None:
            return ()
        theta = what.after.theta()
        for name, terms in what.after.layers[Labels.DATA].items():
            before = state.before.get(name)
            after = None if before is None else means_of(terms, theta[name], what.after)
            if before is not None and after is not None:
                self._learn_outputs(state.layers[name], after - before, ctx)
        return ()

    def _learn_outputs(self, layer: Layer, change: Means, ctx: Context) -> None:
        """The pair of H_g.  The averages' own scale is that of both, on which BFGS does not depend."""
        w = 1 - self.pair_decay
        layer.s.lerp_(change.h, w)
        layer.y.lerp_(change.slope, w)
        raw, fresh = Pair(layer.s, layer.y), self.relative and not layer.learned
        if fresh:
            layer.outputs.begin_(raw)
        pair = layer.outputs.damped(raw, self.powell, ctx.damping**0.5, relative=self.relative)
        if not bool(pair.admissible.any()):
            return
        if fresh:
            layer.outputs.rescale_(pair)
        layer.learned += 1
        layer.outputs.learn_(pair)
