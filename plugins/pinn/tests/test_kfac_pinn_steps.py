"""The two step rules of KFAC for PINNs: a grid with heavy-ball momentum, and the quadratic model."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab import pde
from curvlab.linalg.operator import dense
from curvlab.linalg.vectors import BlockVector
from curvlab.model.partition import partition
from curvlab.objectives.products import GaussNewton
from curvlab.pde.row_products import RowProducts
from curvlab.protocols.needs import Labels, Needs
from curvlab.testing.asserts import assert_close
from curvlab.testing.reference import reference_context
from tests.limits.registered import optimizer

DAMPING = 1e-3
#: KFAC of the paper: the best of 31 rates along δ = μ δ + Δ
KFAC: dict[str, Any] = {
    "step": {"use": "grid", "lr": 1.0, "shrink": 0.5, "count": 31},
    "damping": {"use": "constant", "value": DAMPING},
    "on_update": [{"use": "momentum", "beta": 0.6}],
}
#: KFAC* of the paper: rate and momentum from the quadratic model, and nothing checks the loss
STAR: dict[str, Any] = {
    "step": {"use": "quadratic-model"},
    "damping": {"use": "constant", "value": DAMPING},
    "on_update": [],
}


def equation(u: pde.Field, x: Tensor) -> Tensor:
    return u.laplacian() + u() * u.d("x") - torch.sin(math.pi * x[:, 0])


def value(u: pde.Field, x: Tensor) -> Tensor:
    return torch.stack([u() - x[:, 1], u.d("y")], 1)


def residuals(**settings: Any) -> pde.Residuals:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    terms = (
        pde.Term(equation, pde.Inside(12), weight=0.5),
        pde.Term(value, pde.Faces(8), weight=3.0),
        pde.Term(lambda u, x: u(), pde.Inside(5)),
    )
    problem = pde.Problem({"x": (0.0, 1.0), "y": (0.0, 1.0)}, terms, **settings)
    return pde.Residuals(net.double(), problem).double()


def jacobian(model: pde.Residuals) -> tuple[Tensor, Tensor]:
    """J and r with ``L = ½ ‖r‖²``, columns in the order of the parameters; by plain autograd."""
    rows, parameters = model.problem.rows(model.problem.draw()).double(), list(model.parameters())
    r = math.sqrt(2 / len(rows)) * model(rows).flatten()
    found = [torch.autograd.grad(each, parameters, retain_graph=True, allow_unused=True) for each in r]
    columns = [
        torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, gs, strict=True)]
        )
        for gs in found
    ]
    return torch.stack(columns), r.detach()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def direction(model: pde.Residuals) -> Tensor:
    """Δ, in a first step on a copy of the model: the update at rate 1 without momentum."""
    other = residuals()
    other.load_state_dict(model.state_dict())
    ours = optimizer("kfac-pinn", other, settings={**STAR, "step": {"use": "rate", "lr": 1.0}})
    before = flat(other)
    ours.step(pde.objective(other))
    return before - flat(other)


STEADY = {"preconditioner.estimator.decay": 0.0}  # factors of the present step alone


def test_products_from_rows_are_those_of_the_gauss_newton_matrix() -> None:
    """``JᵀJ`` by plain autograd, by two backward passes and by rows of layers."""
    model = residuals()
    blocks = partition(model, lambda layer: True)
    asked, needs = pde.objective(model), Needs(layers=frozenset({Labels.EXACT}), products=1)
    seen = asked.evaluate(needs, blocks, reference_context())
    plain = asked.evaluate(Needs(products=1), blocks, reference_context())
    assert isinstance(seen.ggn, RowProducts)
    assert isinstance(plain.ggn, GaussNewton)
    zero = blocks.layout.zeros(like=blocks.like.detach())
    found = dense(seen.ggn, zero)
    assert_close(found, dense(plain.ggn, zero), dimension=200)
    J, _ = jacobian(model)
    order = dense_order(model)
    assert_close(found, (J.mT @ J)[order][:, order], dimension=200)


def dense_order(model: pde.Residuals) -> Tensor:
    """Which entry of the flattened parameters each entry of a block vector is."""
    blocks, parameters = partition(model, lambda layer: True), dict(model.named_parameters())
    numbered, start = {}, 0
    for name, p in parameters.items():
        numbered[name] = torch.arange(start, start + p.numel(), dtype=p.dtype).view(p.shape)
        start += p.numel()
    packed: BlockVector = blocks.pack({n: numbered[n] for n in blocks.parameters})
    return packed.flat.long()


def test_products_of_an_unknown_coefficient_are_those_of_two_backward_passes() -> None:
    """No layer explains it, so rows do not suffice."""
    torch.manual_seed(0)
    term = pde.Term(lambda u, x: u.coefficient("kappa") * u.laplacian() - x[:, 0], pde.Inside(6))
    problem = pde.Problem({"x": (0.0, 1.0), "y": (0.0, 1.0)}, (term,), unknowns={"kappa": 1.3})
    model = pde.Residuals(
        nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double(), problem
    ).double()
    blocks = partition(model, lambda layer: True)
    needs = Needs(layers=frozenset({Labels.EXACT}), products=1)
    seen = pde.objective(model).evaluate(needs, blocks, reference_context())
    assert isinstance(seen.ggn, GaussNewton)


def test_the_quadratic_model_is_the_minimum_over_two_directions_by_a_dense_solve() -> None:
    """``min −gᵀδ + ½ δᵀ (JᵀJ + λI) δ`` over ``δ = α Δ + μ δ'``, in each of four steps."""
    model = residuals()
    ours = optimizer("kfac-pinn", model, settings={**STAR, **STEADY})
    previous: Tensor | None = None
    for _ in range(4):
        J, r = jacobian(model)
        basis = torch.stack([direction(model)] + ([] if previous is None else [previous]), 1)
        G = J.mT @ J + DAMPING * torch.eye(J.shape[1], dtype=J.dtype)
        M, b = basis.mT @ G @ basis, basis.mT @ (J.mT @ r)
        before = flat(model)
        ours.step(pde.objective(model))
        previous = before - flat(model)
        expected = basis @ torch.linalg.solve(M, b)
        scale = basis.norm(dim=0)
        condition = float(torch.linalg.cond(M / torch.outer(scale, scale)))
        assert_close(previous, expected, dimension=200, condition=1e4 * condition)


def test_the_momentum_buffer_holds_the_direction_before_it_is_scaled() -> None:
    """``δ_t = μ δ_{t−1} + Δ_t``, then ``θ ← θ − α δ_t`` with α a power of ½: α is in no buffer."""
    model = residuals()
    ours = optimizer("kfac-pinn", model, settings={**KFAC, **STEADY})
    delta = torch.zeros(flat(model).numel(), dtype=torch.float64)
    rates = []
    for _ in range(4):
        delta = 0.6 * delta + direction(model)
        before = flat(model)
        ours.step(pde.objective(model))
        moved = before - flat(model)
        alpha = float(moved @ delta / delta.square().sum())
        assert_close(moved, alpha * delta, dimension=200, condition=1e4)
        if alpha:  # zero where no rate lowers the loss; then δ stays as it is
            rates.append(math.log2(alpha))
            assert rates[-1] == pytest.approx(round(rates[-1]), abs=1e-6)
    assert len(rates) > 1
    assert min(rates[:-1]) < 0  # a buffer that held α Δ would be another one in the step after


@pytest.mark.parametrize("settings", [KFAC, {}], ids=["KFAC", "the default"])
def test_no_step_raises_the_loss(settings: dict[str, Any]) -> None:
    model = residuals()
    ours = optimizer("kfac-pinn", model, settings=settings)
    losses = [float(ours.step(pde.objective(model))) for _ in range(30)]
    assert all(b <= a for a, b in pairwise(losses))
    assert losses[-1] < 0.1 * losses[0]


def test_the_quadratic_model_alone_trains() -> None:
    model = residuals()
    ours = optimizer("kfac-pinn", model, settings=STAR)
    losses = [float(ours.step(pde.objective(model))) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("step", [KFAC["step"], {"use": "quadratic-model", "tries": 31, "damped": False}])
def test_damping_may_follow_the_reduction_ratio(step: dict[str, Any]) -> None:
    model = residuals()
    damping = {"use": "levenberg-marquardt", "initial": 1e-4, "factor": 2.0, "minimum": 1e-14}
    ours = optimizer("kfac-pinn", model, settings={"step": step, "damping": damping})
    losses, seen = [], set()
    for _ in range(20):
        losses.append(float(ours.step(pde.objective(model))))
        seen.add(ours.assignment.members[0].state.damping.damping)
    assert len(seen) > 2
    assert losses[-1] < 0.1 * losses[0]
