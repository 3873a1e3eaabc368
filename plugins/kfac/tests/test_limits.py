"""The neighbors that these methods must equal: each other, in the right corner of their settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError, UnsupportedEvidence
from curvlab.linalg.operator import dense_block
from curvlab.parts.eigenbasis import Eigenbasis
from curvlab.protocols.needs import Labels
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import MeanOverPositions, Problem, chain, classifier, deep_linear, normal
from curvlab.testing.reference import block_of, damped_solve, ggn, gradient, mean_loss, reference_context
from curvlab_kfac.layer_covariance import LayerCovariance
from curvlab_kfac.layer_rows import LayerRows
from plugins.kfac.tests.conftest import dense_blocks, observed

#: KFAC's update and nothing around it
BARE: dict[str, Any] = {"on_update": [], "step.lr": 1.0}
#: each parameter's own curvature, on this step's batch alone
NOW: dict[str, Any] = {"preconditioner.observe_every": 1, "preconditioner.refresh_every": 1}
EXACT_DAMPING: dict[str, Any] = {"preconditioner.inverse": "eigen"}
#: λ itself, not in units of a block's curvature
ABSOLUTE: dict[str, Any] = {"preconditioner.inverse.relative": False}


def shared_net() -> Problem:
    """A tanh network at three positions, pooled: KFAC-reduce and EKFAC's sums over positions."""
    return Problem(
        "pooled",
        lambda: chain((4, 5, 3), nn.Tanh, MeanOverPositions()),
        nn.MSELoss(),
        normal(6, 3, 4, seed=1),
        normal(6, 3, seed=2),
    )


class Mix(nn.Module):
    """Positions see each other, as attention lets them."""

    def forward(self, x: Tensor) -> Tensor:
        """Each position a mean of all three, its own counting most."""
        weights = 0.2 + torch.eye(3, dtype=x.dtype)
        return torch.einsum("st,ntd->nsd", weights, x)


def mixed_net(criterion: str = "squared-error") -> Problem:
    """A loss term at each of three positions, and layers before and after they are mixed."""
    build = lambda: nn.Sequential(nn.Linear(4, 5), Mix(), nn.Tanh(), nn.Linear(5, 2))  # noqa: E731
    targets = normal(6, 3, 2, seed=2)
    if criterion == "squared-error":
        return Problem("mixed", build, nn.MSELoss(), normal(6, 3, 4, seed=1), targets)
    return Problem("mixed, binary", build, nn.BCEWithLogitsLoss(), normal(6, 3, 4, seed=1), targets.sigmoid())


def one_step(optimizer: Any, problem: Problem, name: str, settings: dict[str, Any], **knobs: Any) -> Tensor:
    """The update that one step subtracts, flat."""
    model = problem.model()
    blocks = problem.blocks(model)
    before = blocks.read()
    optimizer(name, model, settings={**BARE, **settings}, **knobs).step(problem.objective(model))
    return (before - blocks.read()).flat


def ggn_blocks(problem: Problem) -> dict[str, Tensor]:
    model = problem.model()
    blocks = problem.blocks(model)
    whole = ggn(model, problem.criterion, problem.inputs, problem.targets, blocks)
    return {name: block_of(whole, blocks.layout, name) for name in blocks.layout.names}


def eigen_state(problem: Problem, estimator: LayerCovariance) -> dict[str, tuple[Tensor, Tensor]]:
    """EKFAC's basis and eigenvalues after one look, per block, both dense."""
    part, model, ctx = Eigenbasis(estimator), problem.model(), reference_context()
    blocks = problem.blocks(model)
    state = part.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
    part.observe(state, problem.objective(model).evaluate(part.needs(0), blocks, ctx), ctx)
    found = {}
    for name, basis in state.basis.items():
        o, i = blocks.layout.shapes[name]
        Q_B = torch.eye(o).double() if basis.Q_B is None else basis.Q_B
        Q_A = torch.eye(i).double() if basis.Q_A is None else basis.Q_A
        found[name] = torch.kron(Q_B, Q_A), state.moments[name].flatten().clone()
    return found


def ekfac_blocks(problem: Problem, **settings: Any) -> dict[str, Tensor]:
    found = eigen_state(problem, LayerCovariance(Dense(), Dense(), **settings))
    return {name: Q * S @ Q.mT for name, (Q, S) in found.items()}


# KFAC, exactly damped


@pytest.mark.parametrize("labels", ["exact", "data", "model"])
def test_kfac_with_eigen_solves_its_own_damped_system(optimizer: Any, labels: str) -> None:
    problem = classifier("cross-entropy", 8)
    update = one_step(optimizer, problem, "kfac", {**NOW, **EXACT_DAMPING}, labels=labels, damping=0.1)
    estimator = LayerCovariance(Dense(), Dense(), labels=Labels(labels))
    found, model, blocks = dense_blocks(estimator, problem, seed=0)
    g = gradient(mean_loss(problem.criterion, model(problem.inputs), problem.targets), blocks)
    for name, C in found.items():
        start, stop = blocks.layout.offsets[name]
        condition = float(torch.linalg.eigvalsh(C)[-1]) / 0.1 + 1
        assert_close(update[start:stop], damped_solve(C, 0.1, g[start:stop]), condition=condition)


# CG-FAC → KFAC


@pytest.mark.parametrize("labels", ["exact", "data", "none", "model"])
def test_rows_are_the_same_curvature_as_factors(labels: str) -> None:
    for problem in (
        classifier("cross-entropy", 6),
        shared_net(),
        deep_linear(4, setting="expand", positions=3),
    ):
        factors, _, _ = dense_blocks(LayerCovariance(Dense(), Dense(), labels=Labels(labels)), problem)
        rows, _, _ = dense_blocks(LayerRows(labels=Labels(labels)), problem)
        for name, block in factors.items():
            assert_close(rows[name], block, dimension=40)


def test_cg_fac_converges_to_kfac_with_exact_damping(optimizer: Any) -> None:
    """The distance is what CG's tolerance leaves, times the condition of the system: κ ≤ 1 + λmax/λ."""
    problem, damping = classifier("cross-entropy", 8), 0.1
    knobs = {"labels": "exact", "damping": damping}
    expected = one_step(optimizer, problem, "kfac", {**NOW, **EXACT_DAMPING}, **knobs)
    largest = max(float(torch.linalg.eigvalsh(C)[-1]) for C in _factored(problem).values())
    distances = []
    for tolerance in (1e-1, 1e-4, 1e-8, 1e-12):
        settings = {"preconditioner.krylov.tolerance": tolerance}
        update = one_step(optimizer, problem, "cg-fac", settings, max_iterations=200, **knobs)
        distances.append(float((update - expected).norm() / expected.norm()))
        assert distances[-1] <= tolerance * (1 + largest / damping) + 1e-13
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 1e-4, "the first tolerance already solves it: nothing converged"


def _factored(problem: Problem) -> dict[str, Tensor]:
    return dense_blocks(LayerCovariance(Dense(), Dense(), labels=Labels.EXACT), problem)[0]


def test_cg_fac_samples_the_labels_that_kfac_samples(optimizer: Any) -> None:
    problem = classifier("cross-entropy", 8)
    kfac = one_step(optimizer, problem, "kfac", {**NOW, **EXACT_DAMPING}, damping=0.1)
    settings = {"preconditioner.krylov.tolerance": 1e-13}
    rows = one_step(optimizer, problem, "cg-fac", settings, max_iterations=300, damping=0.1)
    assert_close(rows, kfac, dimension=100, condition=100.0)


# FOOF = KFAC with B = I


def test_foof_is_kfac_without_an_output_side(optimizer: Any) -> None:
    problem = classifier("cross-entropy", 8)
    foof = one_step(optimizer, problem, "foof", {**NOW, **ABSOLUTE}, damping=0.1)
    for settings in (ABSOLUTE, EXACT_DAMPING, {"preconditioner.inverse": "cholesky"}):
        kfac = one_step(optimizer, problem, "kfac", {**NOW, **settings}, labels="none", damping=0.1)
        assert_close(foof, kfac, condition=100.0)


def test_foof_is_gradient_descent_on_neurons(optimizer: Any) -> None:
    """dW (A Aᵀ/n + λI)⁻¹ per layer, bias column included."""
    problem = classifier("squared-error", 8)
    model = problem.model()
    blocks = problem.blocks(model)
    g = gradient(mean_loss(problem.criterion, model(problem.inputs), problem.targets), blocks)
    update = one_step(optimizer, problem, "foof", {**NOW, **ABSOLUTE}, damping=0.1)
    inputs = {"0": problem.inputs, "2": torch.tanh(model[0](problem.inputs)).detach()}  # type: ignore[index]
    for name, a in inputs.items():
        rows = torch.cat([a, torch.ones(8, 1).double()], dim=1)
        start, stop = blocks.layout.offsets[name]
        o, i = blocks.layout.shapes[name]
        system = rows.mT @ rows / 8 + 0.1 * torch.eye(i).double()
        expected = torch.linalg.solve(system, g[start:stop].view(o, i).mT).mT
        assert_close(update[start:stop].view(o, i), expected, condition=100.0)


# EKFAC


EKFAC_PROBLEMS = [
    *(classifier(c, 6) for c in ("cross-entropy", "squared-error", "binary-cross-entropy")),
    shared_net(),
    mixed_net(),
    mixed_net("binary"),
    deep_linear(6, setting="expand", positions=3),
]


@pytest.mark.parametrize("problem", EKFAC_PROBLEMS, ids=str)
def test_ekfac_is_never_further_from_the_block_than_kfac(problem: Problem) -> None:
    """‖EKFAC − C‖_F ≤ ‖KFAC − C‖_F block by block, and nearer in some unless KFAC is exact."""
    truth, kfac = ggn_blocks(problem), _factored(problem)
    ekfac = ekfac_blocks(problem, labels=Labels.EXACT)
    gains = []
    for name, C in truth.items():
        far, near = float((kfac[name] - C).norm()), float((ekfac[name] - C).norm())
        assert near <= far + 1e-13 * float(C.norm()), f"{name}: {near} against {far}"
        gains.append(near / max(far, 1e-9 * float(C.norm())))
    assert min(gains) < 0.999 or "deep-linear" in problem.name


@pytest.mark.parametrize("problem", EKFAC_PROBLEMS, ids=str)
def test_ekfacs_eigenvalues_are_the_blocks_diagonal_in_its_basis(problem: Problem) -> None:
    """Which makes it the Frobenius-nearest of all diagonals there."""
    found = eigen_state(problem, LayerCovariance(Dense(), Dense(), labels=Labels.EXACT))
    for name, C in ggn_blocks(problem).items():
        Q, S = found[name]
        assert_close(S, (Q.mT @ C @ Q).diagonal(), dimension=len(C))


@pytest.mark.parametrize("criterion", ["cross-entropy", "squared-error", "binary-cross-entropy"])
def test_ekfac_is_the_block_of_one_example(criterion: str) -> None:
    problem = classifier(criterion, 1)
    for name, C in ggn_blocks(problem).items():
        assert_close(ekfac_blocks(problem, labels=Labels.EXACT)[name], C, dimension=len(C))


@pytest.mark.parametrize("examples", [1, 6])
def test_ekfac_is_kfac_where_kfac_is_exact(examples: int) -> None:
    problem = deep_linear(examples)
    kfac, ekfac = _factored(problem), ekfac_blocks(problem, labels=Labels.EXACT)
    for name, block in kfac.items():
        assert_close(ekfac[name], block, dimension=len(block))


def test_ekfac_with_diagonal_factors_is_the_diagonal_of_the_block() -> None:
    """The identity is then the basis: what is left is the GGN's diagonal."""
    problem = classifier("cross-entropy", 6)
    found = eigen_state(problem, LayerCovariance(Diagonal(), Diagonal(), labels=Labels.EXACT))
    for name, C in ggn_blocks(problem).items():
        Q, S = found[name]
        assert torch.equal(Q, torch.eye(len(C)).double())
        assert_close(S, C.diagonal())


def test_ekfacs_step_solves_with_the_block_of_one_example(optimizer: Any) -> None:
    problem = classifier("cross-entropy", 1)
    model = problem.model()
    blocks = problem.blocks(model)
    g = gradient(mean_loss(problem.criterion, model(problem.inputs), problem.targets), blocks)
    settings = {**NOW, "preconditioner.relative": False}
    update = one_step(optimizer, problem, "ekfac", settings, labels="exact", damping=0.1)
    for name, C in ggn_blocks(problem).items():
        start, stop = blocks.layout.offsets[name]
        condition = float(torch.linalg.eigvalsh(C)[-1]) / 0.1 + 1
        assert_close(
            update[start:stop], damped_solve(C, 0.1, g[start:stop]), dimension=100, condition=condition
        )


def test_ekfacs_eigenvalues_follow_a_basis_that_turns() -> None:
    """Moments of the past are seen from the new basis by squared cosines, and their sum is kept."""
    problem, ctx = classifier("cross-entropy", 6), reference_context()
    part = Eigenbasis(LayerCovariance(Dense(), Dense(), labels=Labels.EXACT, decay=0.5), decay=0.5)
    model = problem.model()
    blocks = problem.blocks(model)
    state = part.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
    other = Problem("another batch", problem.build, problem.criterion, normal(6, 4, seed=9), problem.targets)
    passes = [p.objective(model).evaluate(part.needs(0), blocks, ctx) for p in (problem, other)]
    part.observe(state, passes[0], ctx)
    before = {n: (b.Q_B, b.Q_A, state.moments[n].clone()) for n, b in state.basis.items()}
    part.observe(state, passes[1], ctx)
    alone = part.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
    for name, (Q_B, Q_A, S) in before.items():
        new = state.basis[name]
        assert new.Q_B is not None
        assert new.Q_A is not None
        turned = (new.Q_B.mT @ Q_B).square() @ S @ (Q_A.mT @ new.Q_A).square()
        assert_close(turned.sum(), S.sum(), dimension=S.numel())
        alone.basis[name] = new
        stats = passes[1].layers[Labels.EXACT][name][0]
        assert stats.grads is not None
        G = torch.einsum("vno,ni->vnoi", stats.grads[:, :, 0], stats.inputs[:, 0])
        fresh = (new.Q_B.mT @ G @ new.Q_A).square().sum((0, 1)) / 6
        assert_close(state.moments[name], (0.5 * turned + fresh) / 1.5, dimension=100)


def test_forward_only_labels_are_refused_by_an_eigenbasis(optimizer: Any) -> None:
    problem = classifier("cross-entropy", 6)
    with pytest.raises(UnsupportedEvidence, match="eigenbasis"):
        one_step(optimizer, problem, "ekfac", NOW, labels="none")


# what surrounds them


def test_norm_constraint_bounds_the_step_in_the_metric_of_the_curvature(optimizer: Any) -> None:
    """lr² uᵀ(C + λI)u = limit where it binds; where it does not, it changes nothing."""
    problem = classifier("cross-entropy", 8)
    model = problem.model()
    blocks = problem.blocks(model)
    g = gradient(mean_loss(problem.criterion, model(problem.inputs), problem.targets), blocks)
    free = one_step(optimizer, problem, "kfac", {**NOW, **EXACT_DAMPING}, labels="exact", damping=0.1)
    for limit in (1e-4, 1e4):
        settings = {**NOW, **EXACT_DAMPING, "on_update": [{"use": "norm-constraint", "limit": limit}]}
        bound = one_step(optimizer, problem, "kfac", settings, labels="exact", damping=0.1)
        scale = min(1.0, (limit / float(g @ free)) ** 0.5)
        assert_close(bound, scale * free, dimension=100)
    assert (1e-4 / float(g @ free)) ** 0.5 < 1.0


def test_a_layer_that_is_not_called_keeps_its_curvature_and_has_the_identity_at_first() -> None:
    class Half(nn.Module):
        """Two layers of which one is used."""

        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    problem = Problem("half", Half, nn.MSELoss(), normal(5, 4, seed=1), normal(5, 2, seed=2))
    state, seen, blocks, _ = observed(LayerRows(labels=Labels.EXACT), problem)
    assert float(dense_block(state.operators["idle"], seen.gradient["idle"]).abs().max()) == 0.0
    assert float(seen.gradient["idle"].abs().max()) == 0.0
    assert set(blocks.layout.names) == {"used", "idle"}
    state, *_ = observed(LayerCovariance(Dense(), Dense(), labels=Labels.EXACT), problem)
    assert state.observed == {"used": 1, "idle": 0}
    assert torch.equal(state.A["idle"].dense(), torch.eye(5, dtype=state.A["idle"].dense().dtype))


@pytest.mark.parametrize(
    ("knob", "value"), [("labels", "true"), ("sharing", "both"), ("decay", 1.0), ("refresh", 0)]
)
def test_settings_out_of_range_are_refused(optimizer: Any, knob: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=knob if knob != "refresh" else "observe_every"):
        optimizer("kfac", classifier("cross-entropy", 2).model(), **{knob: value})
