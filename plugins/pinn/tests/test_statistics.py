"""Layer statistics of the two terms: what they add up to, and what they are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.errors import UnsupportedEvidence
from curvlab.model.partition import partition
from curvlab.objectives.supervised import objective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close
from curvlab.testing.reference import reference_context
from curvlab_kfac.layer_covariance import LayerCovariance
from curvlab_pinn.objective import pinn_objective
from curvlab_pinn.residuals import Residuals
from curvlab_pinn.term_covariance import TermCovariance
from plugins.pinn.tests.networks import EQUATIONS, model, points
from tests.limits.registered import optimizer

EQUATION = EQUATIONS[3]
ALL = frozenset(Labels)


def seen(
    residuals: Residuals, rows: Tensor, *, micro_batch: int | None = None, kinds: frozenset[Labels] = ALL
) -> tuple[Evaluation, Blocks]:
    blocks = partition(residuals, lambda layer: True)
    found = pinn_objective(residuals, rows, micro_batch=micro_batch)
    needs = Needs(layers=kinds, samples=3 if Labels.MODEL in kinds else 0)
    return found.evaluate(needs, blocks, reference_context()), blocks


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_examples_add_up_to_the_gradient(bias: bool) -> None:
    """With the data's vectors, ``Σ_t 1/n_t Σ_n Σ_s g aᵀ``, bias column and all."""
    found, _ = seen(model(EQUATION, bias=bias), points(EQUATION))
    for name, terms in found.layers[Labels.DATA].items():
        total = torch.zeros_like(found.gradient[name])
        for term in terms:
            assert term.grads is not None
            total += torch.einsum("vnso,nsi->oi", term.grads, term.inputs) / len(term.inputs)
        assert_close(total, found.gradient[name], dimension=100, what=name)


def test_exact_vectors_are_gradients_of_the_residual() -> None:
    """``Σ_s g aᵀ`` of one point is the gradient of its residual in the layer's weight and bias."""
    residuals, rows = model(EQUATION), points(EQUATION)
    found, blocks = seen(residuals, rows)
    inside, on = residuals.split(rows)
    for t, r in enumerate((residuals.inside(inside), residuals.on(on))):
        for n in range(len(r)):
            own = torch.autograd.grad(
                r[n], list(residuals.parameters()), retain_graph=True, allow_unused=True
            )
            packed = blocks.pack(dict(zip(blocks.parameters, own, strict=True)))
            for name in blocks.layout.names:
                term = found.layers[Labels.EXACT][name][t]
                assert term.grads is not None
                mine = term.grads[0, n].mT @ term.inputs[n]
                assert_close(mine, packed[name], dimension=50, scale=1.0, what=f"{name}, term {t}")


def test_terms_have_their_points_and_channels() -> None:
    found, _ = seen(model(EQUATION), points(EQUATION, 7, 4))
    for inside, on in found.layers[Labels.MODEL].values():
        assert inside.inputs.shape[:2] == (7, EQUATION.dimension + 2)
        assert on.inputs.shape[:2] == (4, 1)
        assert inside.grads is not None
        assert inside.grads.shape[:3] == (3, 7, EQUATION.dimension + 2)
    assert all(term.grads is None for terms in found.layers[Labels.NONE].values() for term in terms)


def test_sampled_vectors_are_one_number_per_point_times_the_exact_ones() -> None:
    found, blocks = seen(model(EQUATION), points(EQUATION))
    ratios = []
    for name in blocks.layout.names:
        exact, sampled = (found.layers[kind][name][0].grads for kind in (Labels.EXACT, Labels.MODEL))
        assert exact is not None
        assert sampled is not None
        ratios.append((sampled * exact).sum((2, 3)) / exact.square().sum((2, 3)))
        assert_close(sampled, ratios[-1][..., None, None] * exact, dimension=20)
    for other in ratios[1:]:
        assert_close(other, ratios[0], dimension=100)
    many, _ = seen(model(EQUATION), points(EQUATION, 4000, 1))
    share = many.layers[Labels.MODEL]["net.0"][0].grads
    true = many.layers[Labels.EXACT]["net.0"][0].grads
    assert share is not None
    assert true is not None
    drawn = (share * true).sum((2, 3)) / true.square().sum((2, 3)) * 3**0.5
    assert abs(float(drawn.mean())) < 0.04
    assert abs(float(drawn.var()) - 1) < 0.08


def test_micro_batches_are_one_batch() -> None:
    """Of everything that is not drawn."""
    rows, kinds = points(EQUATION), ALL - {Labels.MODEL}
    whole, _ = seen(model(EQUATION), rows, kinds=kinds)
    for micro_batch in (2, 5, 7):
        cut, _ = seen(model(EQUATION), rows, micro_batch=micro_batch, kinds=kinds)
        assert_close(cut.gradient.flat, whole.gradient.flat, dimension=100)
        for kind in kinds:
            for name, terms in whole.layers[kind].items():
                for mine, theirs in zip(cut.layers[kind][name], terms, strict=True):
                    assert_close(mine.inputs, theirs.inputs, dimension=20)
                    if theirs.grads is not None and mine.grads is not None:
                        assert_close(mine.grads, theirs.grads, dimension=20)


def test_factors_are_as_the_paper_has_them() -> None:
    """``A = 1/(n s) Σ Z Zᵀ`` and ``B = 1/n Σ g gᵀ`` of each term; two looks are averaged."""
    residuals = model(EQUATION)
    estimator = TermCovariance(Dense(), Dense(), decay=0.5)
    blocks = partition(residuals, lambda layer: True)
    ctx = reference_context()
    state = estimator.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
    looks = [seen(residuals, points(EQUATION, 7, m), kinds=frozenset({Labels.EXACT}))[0] for m in (4, 6)]
    for look in looks:
        estimator.observe(state, look, ctx)
    for name in blocks.layout.names:
        for t in (0, 1):
            A, B = [], []
            for look in looks:
                term = look.layers[Labels.EXACT][name][t]
                assert term.grads is not None
                n, s = term.inputs.shape[:2]
                A.append(torch.einsum("nsi,nsj->ij", term.inputs, term.inputs) / (n * s))
                B.append(torch.einsum("vnso,vnsp->op", term.grads, term.grads) / n)
            for found, (old, new) in ((state.A[name][t], A), (state.B[name][t], B)):
                assert_close(found.dense(), (0.5 * old + new) / 1.5, dimension=50)
    V = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    C = estimator.curvature(state).blocks["net.0"]
    parts = zip(state.B["net.0"], state.A["net.0"], strict=True)
    assert_close(C @ V, sum(B.dense() @ V @ A.dense() for B, A in parts), dimension=50)


def test_a_term_without_points_keeps_its_factors() -> None:
    residuals, estimator, ctx = model(EQUATION), TermCovariance(Dense(), Dense()), reference_context()
    blocks = partition(residuals, lambda layer: True)
    state = estimator.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
    kinds = frozenset({Labels.EXACT})
    estimator.observe(state, seen(residuals, points(EQUATION, 7, 0), kinds=kinds)[0], ctx)
    inside = [M.dense().clone() for M in (state.A["net.0"][0], state.B["net.0"][0])]
    assert float(state.A["net.0"][1].dense().abs().max()) == 0.0
    estimator.observe(state, seen(residuals, points(EQUATION, 0, 4), kinds=kinds)[0], ctx)
    assert torch.equal(state.A["net.0"][0].dense(), inside[0])
    assert torch.equal(state.B["net.0"][0].dense(), inside[1])
    alone = seen(residuals, points(EQUATION, 0, 4), kinds=kinds)[0].layers[Labels.EXACT]["net.0"][1]
    assert_close(state.A["net.0"][1].dense(), torch.einsum("nsi,nsj->ij", alone.inputs, alone.inputs) / 4)


def test_of_a_loss_of_one_term_it_is_layer_covariance() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(2, 3)).double()
    x, y = torch.rand(4, 2).double(), torch.rand(4, 3).double()
    blocks, ctx = partition(plain, lambda layer: True), reference_context()
    like = blocks.layout.zeros(like=blocks.like.detach())
    estimates = [kind(Dense(), Dense(), labels=Labels.EXACT) for kind in (TermCovariance, LayerCovariance)]
    states: list[Any] = [e.init(like, ctx) for e in estimates]
    for _ in range(2):
        look = objective(plain, torch.nn.MSELoss(), x, y).evaluate(estimates[0].needs(), blocks, ctx)
        for estimator, state in zip(estimates, states, strict=True):
            estimator.observe(state, look, ctx)
    assert_close(states[0].A["0"][0].dense(), states[1].A["0"].dense())
    assert_close(states[0].B["0"][0].dense(), states[1].B["0"].dense())


def test_more_terms_than_factors_are_refused() -> None:
    residuals, ctx = model(EQUATION), reference_context()
    estimator = TermCovariance(Dense(), Dense(), terms=1)
    look, blocks = seen(residuals, points(EQUATION), kinds=frozenset({Labels.EXACT}))
    state = estimator.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
    with pytest.raises(UnsupportedEvidence, match="expected statistics of at most 1 loss terms, got 2"):
        estimator.observe(state, look, ctx)


def test_methods_for_one_term_say_so() -> None:
    residuals = model(EQUATION)
    ours = optimizer("kfac", residuals)
    with pytest.raises(UnsupportedEvidence, match="expected statistics of 1 loss term, got 2"):
        ours.step(pinn_objective(residuals, points(EQUATION)))


def test_another_precision_keeps_its_statistics() -> None:
    residuals = model(EQUATION).float()
    rows = points(EQUATION).float()
    wide = pinn_objective(residuals, rows).cast(torch.float64)
    assert wide is not None
    blocks = partition(residuals.double(), lambda layer: True)
    found = wide.evaluate(Needs(layers=frozenset({Labels.EXACT})), blocks, reference_context())
    assert len(found.layers[Labels.EXACT]["net.0"]) == 2
    assert found.loss.dtype == torch.float64
