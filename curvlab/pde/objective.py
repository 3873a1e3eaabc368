"""The objective of a problem: the mean of squared residuals, with layer statistics of every term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, jvp

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.losses import MeanSquaredError
from curvlab.objectives.norms import ComposedNorms
from curvlab.objectives.products import GaussNewton, plain_kernels
from curvlab.objectives.supervised import SupervisedObjective
from curvlab.pde.evaluation import TermsEvaluation
from curvlab.pde.residuals import Residuals
from curvlab.pde.row_products import RowProducts
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs


class PdeObjective(SupervisedObjective):
    """``Σ_t ½ weight_t mean_n Σ_q r²`` of ``Residuals`` at points: value, gradient, products, trial losses.

    Layer statistics have one entry per term of the problem.  The examples of a term are its points; a layer
    is shared by the channels of a jet (a bias is an input of the value alone).  With the residual r of a
    point, weighted by the root of the term's weight, "exact" vectors are gradients of r, "data" ones r times
    those, and "model" ones ξ times those, ξ ~ N(0, 1).  Where the network's derivatives are nested, no layer
    is read.
    """

    model: Residuals

    def evaluate(self, needs: Needs, blocks: Blocks, ctx: Context) -> Evaluation:
        plain = replace(needs, layers=frozenset(), samples=0, factored=False, every_block=False, bend=False)
        if not needs.layers or needs.variance:
            seen = super().evaluate(plain, blocks, ctx)
            if not needs.layers:
                return seen
        else:
            seen = None
        terms = TermsEvaluation(self.model, needs, blocks, ctx)
        with self.randomness.repeated(moving=seen is None):
            for chunk in self._batches(self.gradient_sample):
                terms.add(chunk.inputs)
            found = terms.finish()
        bend = partial(self._bend, blocks) if needs.bend else None
        if seen is not None:
            return replace(seen, layers=found.layers, residuals=found.residuals, bend=bend)
        return replace(
            found,
            ggn=self._products(found, needs, blocks, ctx),
            curvature_examples=self._batches(self.curvature_sample).examples,
            bend=bend,
        )

    def _products(
        self, found: Evaluation, needs: Needs, blocks: Blocks, ctx: Context
    ) -> LinearOperator[BlockVector] | None:
        """Gauss-Newton products: from the rows of the statistics if these explain every block."""
        if not needs.ggn:
            return None
        if self.curvature_sample is self.gradient_sample:
            known = RowProducts.of(found, blocks)
            if known is not None:
                return known
        curvature = self._batches(self.curvature_sample)
        self._require_products(curvature, ctx)
        return GaussNewton(self.model, blocks, curvature, self.randomness)

    def _bend(self, blocks: Blocks, v: BlockVector) -> tuple[Float[Tensor, "q n"], ...]:
        """Second derivatives of every term's residuals along v, by nested forward mode."""
        direction, at = blocks.assembled(v), dict(self.model.named_parameters())
        found: list[list[Tensor]] = [[] for _ in self.model.problem.terms]
        with self.randomness.repeated(), torch.no_grad(), plain_kernels(self.model), ComposedNorms():
            for chunk in self._batches(self.gradient_sample):
                for t, rows in enumerate(self.model.parts(chunk.inputs)):
                    if len(rows):
                        found[t].append(_second(self.model, at, direction, t, rows))
        weights = [term.weight**0.5 for term in self.model.problem.terms]
        return tuple(
            w * torch.cat(parts).mT if parts else v.flat.new_zeros(1, 0)
            for w, parts in zip(weights, found, strict=True)
        )


def _second(
    model: Residuals, at: Mapping[str, Tensor], along: Mapping[str, Tensor], t: int, rows: Tensor
) -> Float[Tensor, "n q"]:
    def r(s: Tensor) -> Tensor:
        moved = {name: p.detach() + s * along[name] if name in along else p for name, p in at.items()}
        found: Tensor = functional_call(model, moved, (rows,), {"term": t})
        return found

    def slope(s: Tensor) -> Tensor:
        found: Tensor = jvp(r, (s,), (torch.ones_like(s),))[1]
        return found

    zero = rows.new_zeros(())
    second: Tensor = jvp(slope, (zero,), (torch.ones_like(zero),))[1]
    return second


def objective(
    model: Residuals, points: Sequence[Tensor] | Tensor | None = None, *, micro_batch: int | None = None
) -> PdeObjective:
    """The objective of a problem at points, for ``optimizer.step``.

    ``points`` are a tensor ``[n, d]`` for each term (``Problem.draw``), or rows (``Problem.rows``); left out,
    they are drawn with seed 0.  ``micro_batch`` bounds how many are in memory at once.
    """
    if not isinstance(points, Tensor):
        like = next(model.parameters())
        points = model.problem.rows(tuple(points or model.problem.draw()), like)
    targets = torch.zeros(len(points), model.width, dtype=points.dtype, device=points.device)
    return PdeObjective(model, MeanSquaredError("sum"), points, targets, micro_batch=micro_batch)
