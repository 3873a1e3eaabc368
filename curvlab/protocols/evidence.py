"""What parts learn from: one evaluation, one solve, one step, and what came of it.

One scale, stated once.  The loss is ``L = mean_n ℓ_n`` over n examples.  ``gradient`` is ∇L.
``LayerStats.grads`` are gradients of the *un-averaged* ℓ_n, so that
``(1/n) Σ_{v,n} (Σ_s g aᵀ)²`` is the curvature of L; an estimator sums rows and divides by the number of
examples whose rows there are, once, which makes micro-batches exact for every part (and is all of
``Evaluation.examples`` unless ``Needs.layer_examples`` asked for fewer).  Where ℓ_n is itself a mean
over ``positions`` terms (tokens), each row of ``grads`` carries ``1/√positions``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.cg import Stop
from curvlab.linalg.compose import Restricted
from curvlab.linalg.lookups import AnyRows
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.progress import Iterate
from curvlab.linalg.secants import Secant
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.needs import Labels
from curvlab.protocols.path import DampedPath


@dataclass(frozen=True)
class LayerStats:
    """What one layer saw for one loss term: its inputs and, per back-propagated vector, gradients.

    ``inputs`` are ``[n, r, i]``, dense or one-hot.  ``r = s``, except for a layer of k groups
    (``LayerReader.groups``): ``r = s k``, and ``reader.products`` knows which row belongs to which outputs.
    ``channels``: positions are the channels of a jet, a value and its derivatives, whose mean has no meaning.
    """

    inputs: AnyRows
    grads: Float[Tensor, "v n s o"] | None
    channels: bool = False

    def to(self, dtype: torch.dtype) -> LayerStats:
        """The same rows in another dtype: that of the products they go into."""
        grads = None if self.grads is None else self.grads.to(dtype)
        return replace(self, inputs=self.inputs.to(dtype), grads=grads)

    @classmethod
    def flat(cls, rows: Float[Tensor, "v n d"]) -> LayerStats:
        """Gradients of single examples: a block of d numbers as a matrix of one column whose input is 1."""
        return cls(rows.new_ones(rows.shape[1], 1, 1), rows.unsqueeze(2))


#: layer statistics by label kind and block name; one entry per loss term
Layers = Mapping[Labels, Mapping[str, tuple[LayerStats, ...]]]


@dataclass(frozen=True)
class Variance:
    """How much the gradients ∇ℓ_i of single examples differ: sample variances, with 1/(n − 1).

    ``total`` is summed over coordinates, ``(Σ_i ‖∇ℓ_i‖² − n ‖∇L‖²) / (n − 1)``; ``along`` is that of the
    inner products ``⟨∇ℓ_i, ∇L⟩``.
    """

    total: Float[Tensor, ""]
    along: Float[Tensor, ""]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation at θ, micro-batches merged.

    ``ggn`` multiplies with the Gauss–Newton matrix of the curvature sample; it is valid during this
    step only.  ``terms`` counts loss terms per example (1, or the sequence length of a loss per
    token), ``positions`` those of them that are averaged: 1 where they are summed.  A plain loop knows
    of several terms only if its reduction is ``"mean-tokens"``; it counts ``examples`` only if a part needs
    their number (``Needs.examples``, ``Needs.layers``), else they are 0.  ``absent`` names the parameters
    that this evaluation gave no gradient, where ``gradient`` holds zeros.

    ``residuals`` are what rows of statistics are weighted with in the gradient: of each loss term,
    ``∇L = Σ_terms (1/n) Σ_{v,n} residual_vn · Σ_s g aᵀ``; kinds whose labels are drawn have none.
    ``bend(v)`` is the second derivative of these residuals along a direction v, by term, valid during this
    step only (for losses that are no squares, with the root of the output Hessian held fixed).

    ``theta()`` is a copy of the parameters that were evaluated, packed; it is there if ``Needs.after`` was
    asked for, and valid until the step is written (of ``StepOutcome.after``: until the step ends).
    ``beside`` is the share of ``gradient`` that comes from penalties of callbacks: no row of
    statistics explains it.
    """

    examples: int
    loss: Float[Tensor, ""]
    gradient: BlockVector
    layers: Layers = field(default_factory=dict)
    ggn: LinearOperator[BlockVector] | None = None
    curvature_examples: int = 0
    positions: int = 1
    terms: int = 1
    variance: Variance | None = None
    absent: frozenset[str] = frozenset()
    residuals: Mapping[Labels, tuple[Float[Tensor, "v n"], ...]] = field(default_factory=dict)
    bend: Callable[[BlockVector], tuple[Float[Tensor, "v n"], ...]] | None = None
    theta: Callable[[], BlockVector] | None = None
    beside: BlockVector | None = None

    def restrict(self, layout: BlockLayout) -> Evaluation:
        """What this pass says of some of its blocks; itself if that is all of them."""
        whole = self.gradient.layout
        if layout == whole:
            return self
        layers = {
            kind: {name: terms for name, terms in found.items() if name in layout.shapes}
            for kind, found in self.layers.items()
        }
        ggn = None if self.ggn is None else Restricted(self.ggn, whole, layout)
        bend, every = None, self.bend
        if every is not None:

            def bend(v: BlockVector) -> tuple[Tensor, ...]:
                return every(v.padded(whole))

        beside = None if self.beside is None else self.beside.restrict(layout)
        read = None if self.theta is None else partial(_restricted, self.theta, layout)
        gradient = self.gradient.restrict(layout)
        return replace(self, gradient=gradient, layers=layers, ggn=ggn, bend=bend, theta=read, beside=beside)


def _restricted(theta: Callable[[], BlockVector], layout: BlockLayout) -> BlockVector:
    return theta().restrict(layout)


@dataclass(frozen=True)
class Solve:
    """The preconditioned gradient ``x`` and how it was obtained.

    ``iterates``, of solvers that keep them, run from early to late and end with ``x`` itself. ``secants`` are
    the pairs that were asked for (``Preconditioner.pairs``).  ``path`` holds the solutions for other
    dampings, of parts that know them (``Preconditioner.path``).
    """

    x: BlockVector
    iterations: int = 0
    reason: Stop = Stop.DIRECT
    iterates: tuple[Iterate, ...] = ()
    secants: tuple[Secant, ...] = ()
    path: DampedPath | None = None


@dataclass(frozen=True)
class Step:
    """What a step rule chose: subtract ``alpha · update``; a rejected step moves nothing.

    ``gradient`` and ``loss`` are those there, on the step's gradient sample, if the search came to know them.
    """

    update: BlockVector
    alpha: float
    accepted: bool = True
    gradient: BlockVector | None = None
    loss: float | None = None


@dataclass(frozen=True)
class StepOutcome:
    """Everything a part may learn from one step.

    ``ratio`` is the reduction ratio, on the steps for which the damping asked for it.  ``after`` is the
    evaluation of the same batch where the step ended, on the steps for which ``Needs.after`` asked for it;
    ``None`` if no parameter moved, or if it was not finite.
    """

    before: Evaluation
    solve: Solve
    step: Step
    ratio: float | None = None
    after: Evaluation | None = None

    def restrict(self, layout: BlockLayout) -> StepOutcome:
        """What came of the step for some of its blocks; ``ratio`` is that of all blocks."""
        solve, step = self.solve, self.step
        return replace(
            self,
            before=self.before.restrict(layout),
            after=None if self.after is None else self.after.restrict(layout),
            solve=replace(
                solve,
                path=None,
                x=solve.x.restrict(layout),
                iterates=tuple(replace(i, x=i.x.restrict(layout)) for i in solve.iterates),
                secants=tuple(
                    replace(p, s=p.s.restrict(layout), y=p.y.restrict(layout)) for p in solve.secants
                ),
            ),
            step=replace(
                step,
                update=step.update.restrict(layout),
                gradient=None if step.gradient is None else step.gradient.restrict(layout),
            ),
        )
