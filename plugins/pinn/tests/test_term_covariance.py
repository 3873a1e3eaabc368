"""Factors of every term of a loss are those of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab import pde
from curvlab.errors import UnsupportedEvidence
from curvlab.model.partition import partition
from curvlab.objectives.supervised import objective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab.testing.reference import reference_context
from curvlab_kfac.layer_covariance import LayerCovariance
from curvlab_pinn.tasks.heat import Heat
from curvlab_pinn.term_covariance import TermCovariance

EXACT = frozenset({Labels.EXACT})


def model() -> pde.Residuals:
    """The heat equation: its equation, its start and its walls."""
    torch.manual_seed(0)
    made = Heat(dimension=3, hidden=(5, 4)).model().double()
    assert isinstance(made, pde.Residuals)
    return made


def seen(of: pde.Residuals, *counts: int) -> tuple[Evaluation, Blocks]:
    """An evaluation at so many points of each term, which need not lie on a boundary for what is tested."""
    points = [normal(n, 3, seed=t) for t, n in enumerate(counts)]
    blocks = partition(of, lambda layer: True)
    return pde.objective(of, points).evaluate(Needs(layers=EXACT), blocks, reference_context()), blocks


def factors(term: Any) -> tuple[Tensor, Tensor]:
    """``A = 1/(n s) Σ a aᵀ`` and ``B = 1/n Σ g gᵀ``."""
    n, s = term.inputs.shape[:2]
    A = torch.einsum("nsi,nsj->ij", term.inputs, term.inputs) / (n * s)
    return A, torch.einsum("vnso,vnsp->op", term.grads, term.grads) / n


def started(estimator: TermCovariance, blocks: Blocks) -> Any:
    return estimator.init(blocks.layout.zeros(like=blocks.like.detach()), reference_context())


def test_factors_are_as_the_paper_has_them() -> None:
    """Two observations are averaged by the sum of their weights."""
    of, ctx = model(), reference_context()
    estimator = TermCovariance(Dense(), Dense(), decay=0.5, terms=3)
    looks, (_, blocks) = [seen(of, 7, 4, m)[0] for m in (5, 6)], seen(of, 7, 4, 5)
    state = started(estimator, blocks)
    for look in looks:
        estimator.observe(state, look, ctx)
    for name in blocks.layout.names:
        for t in range(3):
            old, new = (factors(look.layers[Labels.EXACT][name][t]) for look in looks)
            for k, found in enumerate((state.A[name][t], state.B[name][t])):
                assert_close(found.dense(), (0.5 * old[k] + new[k]) / 1.5, dimension=50)
    V = normal(5, 4, seed=0)
    C = estimator.curvature(state).blocks["net.0"]
    parts = zip(state.B["net.0"], state.A["net.0"], strict=True)
    assert_close(C @ V, sum(B.dense() @ V @ A.dense() for B, A in parts), dimension=50)  # type: ignore[arg-type]


def test_a_term_without_points_keeps_its_factors() -> None:
    of, estimator, ctx = model(), TermCovariance(Dense(), Dense(), terms=3), reference_context()
    first, blocks = seen(of, 7, 0, 2)
    state = started(estimator, blocks)
    estimator.observe(state, first, ctx)
    inside = [M.dense().clone() for M in (state.A["net.0"][0], state.B["net.0"][0])]
    assert float(state.A["net.0"][1].dense().abs().max()) == 0.0
    second, _ = seen(of, 0, 4, 2)
    estimator.observe(state, second, ctx)
    assert torch.equal(state.A["net.0"][0].dense(), inside[0])
    assert torch.equal(state.B["net.0"][0].dense(), inside[1])
    A, B = factors(second.layers[Labels.EXACT]["net.0"][1])
    assert_close(state.A["net.0"][1].dense(), A, dimension=50)
    assert_close(state.B["net.0"][1].dense(), B, dimension=50)


def test_of_a_loss_of_one_term_it_is_layer_covariance() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 3)).double()
    x, y = torch.rand(4, 2).double(), torch.rand(4, 3).double()
    blocks, ctx = partition(plain, lambda layer: True), reference_context()
    like = blocks.layout.zeros(like=blocks.like.detach())
    estimates = [kind(Dense(), Dense(), labels=Labels.EXACT) for kind in (TermCovariance, LayerCovariance)]
    states: list[Any] = [e.init(like, ctx) for e in estimates]
    for _ in range(2):
        look = objective(plain, nn.MSELoss(), x, y).evaluate(estimates[0].needs(), blocks, ctx)
        for estimator, state in zip(estimates, states, strict=True):
            estimator.observe(state, look, ctx)
    assert_close(states[0].A["0"][0].dense(), states[1].A["0"].dense())
    assert_close(states[0].B["0"][0].dense(), states[1].B["0"].dense())


def test_more_terms_than_factors_are_refused() -> None:
    estimator, (look, blocks) = TermCovariance(Dense(), Dense(), terms=1), seen(model(), 7, 4, 2)
    with pytest.raises(UnsupportedEvidence, match="expected statistics of at most 1 loss terms, got 3"):
        estimator.observe(started(estimator, blocks), look, reference_context())
