"""The laws of exact Gauss–Newton in sample space, in float64 against dense references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab import pde
from curvlab.linalg.vectors import BlockVector
from curvlab.model.partition import partition
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.testing.asserts import assert_close
from curvlab.testing.reference import reference_context
from curvlab_samplespace.jacobian import Jacobian
from curvlab_samplespace.layer_space import LayerSpace
from curvlab_samplespace.sample_space import SampleSpace
from curvlab_samplespace.trust_path import SpectralPath
from plugins.samplespace.tests.dense import jacobian, pde_residuals

EVERYTHING = Needs(layers=frozenset({Labels.EXACT}), every_block=True, bend=True)


def evaluated(asked: Any, model: nn.Module, damping: float = 0.1) -> tuple[Evaluation, Blocks, Context]:
    blocks, ctx = partition(model, lambda layer: True), reference_context(damping)
    return asked.evaluate(EVERYTHING, blocks, ctx), blocks, ctx


class Mixed(nn.Module):
    """Convolution, norms, embedding, recurrent cell and bare parameters: layers of every kind of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1, groups=2)
        self.norm = nn.LayerNorm(4)
        self.table = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3, 3))
        self.head = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        h = self.norm(torch.tanh(self.conv(x)).mT) + self.table(index)
        h = torch.tanh(self.mix(h)).mean(1)
        return self.head(torch.tanh(h @ self.scale) * h)


def supervised(kind: str, micro_batch: int | None = None) -> tuple[SupervisedObjective, nn.Module]:
    torch.manual_seed(1)
    model = Mixed().double()
    inputs = torch.randn(6, 2, 5, dtype=torch.float64), torch.randint(0, 7, (6, 5))
    if kind == "squares":
        return objective(
            model, nn.MSELoss(), inputs, torch.randn(6, 3).double(), micro_batch=micro_batch
        ), model
    return objective(
        model, nn.CrossEntropyLoss(), inputs, torch.randint(0, 3, (6,)), micro_batch=micro_batch
    ), model


def dense_rows(asked: SupervisedObjective, model: nn.Module, blocks: Blocks) -> Tensor:
    """Rows of J from the loss's own columns, by the outputs' Jacobian."""
    inputs, targets = asked.gradient_sample  # type: ignore[misc]
    f = model(*inputs)
    J = jacobian(model, lambda: model(*inputs), blocks).view(*f.shape, -1)
    columns = list(
        asked.loss_rule.hessian_columns(
            f.detach(), targets, asked._batches(asked.gradient_sample)._weights(targets, len(f))
        )
    )
    rows = [torch.einsum("nc,ncp->np", v, J) for v in columns]
    return torch.cat(rows) / len(f) ** 0.5


@pytest.mark.parametrize("kind", ["squares", "cross-entropy"])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_rows_are_those_of_the_dense_jacobian(kind: str, micro_batch: int | None) -> None:
    """K by layers, JV, Jᵀc and J itself, of every kind of layer; ``Jᵀ r`` is the gradient."""
    asked, model = supervised(kind, micro_batch)
    seen, blocks, _ = evaluated(asked, model)
    J, dense = Jacobian.of(seen, Labels.EXACT, "test"), dense_rows(asked, model, blocks)
    assert_close(J.dense(), dense, dimension=100)
    assert_close(J.gram(), dense @ dense.mT, dimension=1000)
    v = BlockVector(J.layout, torch.randn(J.layout.size, dtype=torch.float64))
    assert_close(J.times(v), dense @ v.flat, dimension=1000)
    r = J.residual(seen.residuals[Labels.EXACT])
    assert_close(J.transposed(r).flat, seen.gradient.flat, dimension=1000, scale=1.0)


def test_rows_of_a_problem_are_those_of_the_dense_jacobian(poisson: pde.Residuals) -> None:
    """Several terms, several residuals a point, data, weights, an unknown coefficient."""
    asked = pde.objective(poisson)
    seen, blocks, _ = evaluated(asked, poisson)
    rows = asked.gradient_sample[0]  # type: ignore[index]
    dense = jacobian(poisson, lambda: pde_residuals(poisson, rows), blocks)
    J = Jacobian.of(seen, Labels.EXACT, "test")
    assert_close(J.dense(), dense, dimension=100)
    assert_close(J.gram(), dense @ dense.mT, dimension=1000)
    r = J.residual(seen.residuals[Labels.EXACT])
    assert_close(r, pde_residuals(poisson, rows).detach(), dimension=100)
    assert_close(J.transposed(r).flat, seen.gradient.flat, dimension=1000)
    plain = torch.autograd.grad(
        0.5 * pde_residuals(poisson, rows).square().sum(), list(blocks.parameters.values())
    )
    assert_close(
        seen.gradient.flat, blocks.pack(dict(zip(blocks.parameters, plain, strict=True))).flat, dimension=100
    )


def metric(J: Jacobian | None) -> Tensor:
    """M of a metric, I without one."""
    assert J is not None
    ones = BlockVector(J.layout, torch.ones(J.layout.size, dtype=torch.float64))
    return J.measured(J.measured(ones)).flat.diag()


@pytest.mark.parametrize("scaling", [0.0, 1.0])
@pytest.mark.parametrize(
    ("space", "solver"),
    [("sample", "spectrum"), ("sample", "cholesky"), ("sample", "nystrom"), ("parameter", "spectrum")],
)
def test_a_step_is_the_damped_gauss_newton_step(
    poisson: pde.Residuals, space: str, solver: str, scaling: float
) -> None:
    """``(JᵀJ + λM)⁻¹ v`` whatever the space, the solver and the metric M; Nyström at full rank."""
    asked = pde.objective(poisson)
    seen, blocks, ctx = evaluated(asked, poisson)
    J = jacobian(poisson, lambda: pde_residuals(poisson, asked.gradient_sample[0]), blocks)  # type: ignore[index]
    part = SampleSpace(space=space, solver=solver, scaling=scaling)  # type: ignore[arg-type]
    state = part.init(seen.gradient, ctx)
    part.observe(state, seen, ctx)
    part.refresh(state, ctx)
    M = metric(state.jacobian)
    for v in (
        seen.gradient,
        seen.gradient.plus(BlockVector(seen.gradient.layout, torch.ones(seen.gradient.layout.size).double())),
    ):
        expected = torch.linalg.solve(J.mT @ J + ctx.damping * M, v.flat)
        assert_close(part.apply(state, v, ctx).x.flat, expected, dimension=100, condition=1e4)


@pytest.mark.parametrize("scaling", [0.0, 1.0])
def test_spring_projects_its_last_update(poisson: pde.Residuals, scaling: float) -> None:
    """``x ← μ x' + (JᵀJ + λM)⁻¹ Jᵀ (r − μ J x')``."""
    asked = pde.objective(poisson)
    seen, blocks, ctx = evaluated(asked, poisson)
    rows = asked.gradient_sample[0]  # type: ignore[index]
    J, r = (
        jacobian(poisson, lambda: pde_residuals(poisson, rows), blocks),
        pde_residuals(poisson, rows).detach(),
    )
    part = SampleSpace(solver="cholesky", space="sample", momentum=0.7, scaling=scaling)
    state = part.init(seen.gradient, ctx)
    last = torch.randn(J.shape[1]).double()
    state.last.flat.copy_(last)  # type: ignore[union-attr]
    part.observe(state, seen, ctx)
    part.refresh(state, ctx)
    C = J.mT @ J + ctx.damping * metric(state.jacobian)
    expected = 0.7 * last + torch.linalg.solve(C, J.mT @ (r - 0.7 * J @ last))
    assert_close(part.apply(state, seen.gradient, ctx).x.flat, expected, dimension=100, condition=1e4)


@pytest.mark.parametrize("space", ["sample", "parameter"])
def test_steps_of_a_trust_region_have_its_radius(space: str) -> None:
    """‖x(λ)‖ = radius to 1e-10; beyond the longest, the undamped step; the model changes as predicted."""
    asked, model = supervised("squares")
    seen, _, ctx = evaluated(asked, model, damping=0.0)
    part = SampleSpace(space=space)  # type: ignore[arg-type]
    state = part.init(seen.gradient, ctx)
    part.observe(state, seen, ctx)
    part.refresh(state, ctx)
    solve = part.apply(state, seen.gradient, ctx)
    path, J = solve.path, state.jacobian
    assert isinstance(path, SpectralPath)
    assert J is not None
    for share in (0.999, 0.5, 1e-2, 1e-4, 1e-8):
        radius = share * path.longest
        damping = path.damping(radius)
        x = path.at(damping)
        assert abs(float(x.norm()) / radius - 1) < 1e-10
        change = -seen.gradient.dot(x) + 0.5 * J.times(x).square().sum()
        assert_close(torch.tensor(path.predicted(damping), dtype=torch.float64), change, dimension=1000)
    assert path.damping(2 * path.longest) == 0.0
    assert_close(path.at(0.0).flat, solve.x.flat, dimension=10)


def test_a_linear_problem_is_solved_in_one_step() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    x = torch.randn(40, 5).double()
    y = x @ torch.randn(5, 2).double() + 1.0
    for name in ("lm", "engd"):
        nn.init.normal_(model.weight)
        optimizer = curvlab.optimizer(name, model)
        optimizer.step(curvlab.objective(model, nn.MSELoss(), x, y))
        assert float((model(x) - y).detach().square().mean()) < 1e-24, name


def test_the_geodesic_correction_solves_for_the_second_derivative(poisson: pde.Residuals) -> None:
    """Against finite differences of the residual along the step."""
    asked = pde.objective(poisson)
    seen, blocks, _ = evaluated(asked, poisson)
    rows = asked.gradient_sample[0]  # type: ignore[index]
    v = BlockVector(seen.gradient.layout, torch.randn(seen.gradient.layout.size).double())
    J, h, theta = Jacobian.of(seen, Labels.EXACT, "test"), 1e-4, blocks.read()
    assert seen.bend is not None
    values = []
    for step in (-h, 0.0, h):
        blocks.assign_(theta.plus(v, step))
        values.append(pde_residuals(poisson, rows).detach())
    blocks.assign_(theta)
    second = (values[0] - 2 * values[1] + values[2]) / h**2
    found = J.residual(seen.bend(v))
    assert float((found - second).norm() / second.norm()) < 1e-4


def test_each_layer_is_solved_by_its_own_kernel() -> None:
    asked, model = supervised("cross-entropy")
    seen, blocks, ctx = evaluated(asked, model, damping=0.3)
    names = [b.name for b in blocks.members if b.is_layer]
    seen = seen.restrict(seen.gradient.layout.restrict(tuple(names)))
    part = LayerSpace(labels=Labels.EXACT, relative=False)
    state = part.init(seen.gradient, ctx)
    part.observe(state, seen, ctx)
    x = part.apply(state, seen.gradient, ctx).x
    J = Jacobian.of(seen, Labels.EXACT, "test")
    for name in names:
        A = J.block(name).dense()
        expected = torch.linalg.solve(
            A.mT @ A + 0.3 * torch.eye(A.shape[1]).double(), seen.gradient[name].reshape(-1)
        )
        assert_close(x[name].reshape(-1), expected, dimension=100, condition=100)


def test_fngd_is_the_layerwise_natural_gradient_until_its_weights_are_kept() -> None:
    """With a slot for every example of an epoch the kept weights are those of its first pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    batches = [(torch.randn(8, 4).double(), torch.randint(0, 3, (8,))) for _ in range(2)]
    settings = {"preconditioner.slots": "epoch", "preconditioner.warmup": 2, "preconditioner.size": 8}
    ours = curvlab.optimizer("fngd", model, settings=settings, lr=0.0, momentum=0.0, damping=0.5)
    exact = LayerSpace(relative=True)
    for step in range(4):
        x, y = batches[step % 2]
        ours.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
        state = ours.arms[0].state.preconditioner
        assert state.observed == [min(step // 2 + 1, 1), min((step + 1) // 2, 1)]
    blocks, ctx = partition(model, lambda layer: True), reference_context(0.5)
    needs = Needs(layers=frozenset({Labels.DATA}), examples=True)
    for k, (x, y) in enumerate(
        batches
    ):  # θ did not move, so the weights are still those of the natural gradient
        seen = curvlab.objective(model, nn.CrossEntropyLoss(), x, y).evaluate(needs, blocks, ctx)
        mine = exact.init(seen.gradient, ctx)
        exact.observe(mine, seen, ctx)
        expected = exact.apply(mine, seen.gradient, ctx).x
        J = Jacobian.of(seen, Labels.DATA, "test")
        for name, w in state.weights.items():
            found = J.block(name).transposed(w[k] * len(x) ** -0.5)[name]
            assert_close(found, expected[name], dimension=100, condition=100)
