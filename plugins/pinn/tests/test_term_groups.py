"""The two groups of terms that ``term-covariance`` forms, for any number of terms, and the method on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab import pde
from curvlab.linalg.kronecker import KroneckerSum
from curvlab.linalg.operator import dense_block
from curvlab.model.partition import partition
from curvlab.pde.task import PdeTask
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels
from curvlab.protocols.sampler import Draw
from curvlab.protocols.structure import Structure
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close
from curvlab.testing.reference import reference_context
from curvlab_kfac.layer_covariance import LayerCovariance
from curvlab_pinn.pair_eigen import PairEigen
from curvlab_pinn.tasks.allen_cahn import AllenCahn
from curvlab_pinn.tasks.burgers import Burgers
from curvlab_pinn.tasks.heat import Heat
from curvlab_pinn.tasks.helmholtz import Helmholtz
from curvlab_pinn.tasks.inverse_poisson import InversePoisson
from curvlab_pinn.tasks.kdv import KdV
from curvlab_pinn.tasks.poisson import Poisson
from curvlab_pinn.term_covariance import TermCovariance, TermState
from tests.limits.registered import optimizer

ESTIMATOR = TermCovariance(Dense(), Dense(), decay=0.5)
KIND = frozenset({Labels.EXACT})


def equation(u: pde.Field, x: Tensor) -> Tensor:
    return u.laplacian() + u() * u.d("x") - torch.sin(math.pi * x[:, 0])


def value(u: pde.Field, x: Tensor) -> Tensor:
    return u() - x[:, 1]


def slope(u: pde.Field, x: Tensor) -> Tensor:
    return u.d("y")


#: two terms that see a jet, with three and four channels, and two that see values
TERMS = (
    pde.Term(equation, pde.Inside(7), weight=0.5),
    pde.Term(value, pde.Faces(5), weight=3.0),
    pde.Term(slope, pde.Faces(4, ("y",))),
    pde.Term(value, pde.Inside(6), weight=0.1, name="again"),
)
JETS, VALUES = (0, 2), (1, 3)


def residuals(terms: Sequence[pde.Term] = TERMS, **settings: Any) -> pde.Residuals:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))
    problem = pde.Problem({"x": (0.0, 1.0), "y": (0.0, 1.0)}, tuple(terms), **settings)
    return pde.Residuals(net.double(), problem).double()


def evaluated(model: pde.Residuals, points: Any = None) -> tuple[Evaluation, Blocks]:
    blocks = partition(model, lambda layer: True)
    return pde.objective(model, points).evaluate(ESTIMATOR.needs(), blocks, reference_context()), blocks


def observed(model: pde.Residuals, *points: Any) -> TermState:
    _, blocks = evaluated(model, points[0] if points else None)
    state = ESTIMATOR.init(blocks.layout.zeros(like=blocks.like.detach()), reference_context())
    for some in points or (None,):
        ESTIMATOR.observe(state, evaluated(model, some)[0], reference_context())
    return state


def factors(found: Evaluation, name: str, t: int) -> tuple[Tensor, Tensor]:
    """``A = 1/(n s) Σ a aᵀ`` and ``B = 1/n Σ g gᵀ`` of one term."""
    term = found.layers[Labels.EXACT][name][t]
    assert term.grads is not None
    assert isinstance(term.inputs, Tensor)
    n, s = term.inputs.shape[:2]
    A = torch.einsum("nsi,nsj->ij", term.inputs, term.inputs) / (n * s)
    return A, torch.einsum("vnso,vnsp->op", term.grads, term.grads) / n


def test_in_a_group_A_is_the_mean_and_B_the_sum() -> None:
    """Four terms make two products, whatever their order."""
    model = residuals()
    state, (found, _) = observed(model), evaluated(model)
    for name, terms in found.layers[Labels.EXACT].items():
        assert [t.inputs.shape[1] > 1 for t in terms] == [t in JETS for t in range(4)]
        for k, group in enumerate((JETS, VALUES)):
            A, B = zip(*(factors(found, name, t) for t in group), strict=True)
            assert_close(state.A[name][k].dense(), sum(A) / len(A), dimension=100)
            assert_close(state.B[name][k].dense(), sum(B), dimension=100)


def test_a_weight_multiplies_B_alone() -> None:
    """A term of weight w has w times the factor B of the same term with weight 1, and the same A."""
    both = [observed(residuals([pde.Term(equation, pde.Inside(7), weight=w)])) for w in (1.0, 2.5)]
    for name in both[0].A:
        assert_close(both[1].A[name][0].dense(), both[0].A[name][0].dense(), dimension=100)
        assert_close(both[1].B[name][0].dense(), 2.5 * both[0].B[name][0].dense(), dimension=100)


def test_two_equal_terms_of_half_the_weight_are_one_term() -> None:
    """In either group: what is said twice counts twice, and no more."""
    points = residuals().problem.draw()
    for term, x in ((TERMS[0], points[0]), (TERMS[1], points[1])):
        halves = [pde.Term(term.residual, term.points, weight=term.weight / 2)] * 2
        one, two = observed(residuals([term]), [x]), observed(residuals(halves), [x, x])
        for name in one.A:
            for mine, theirs in zip((*two.A[name], *two.B[name]), (*one.A[name], *one.B[name]), strict=True):
                assert_close(mine.dense(), theirs.dense(), dimension=100)


@pytest.mark.parametrize("terms", [(0,), (1,), (0, 2), (1, 3)], ids=str)
def test_one_group_is_plain_kfac_with_damping_on_each_factor(terms: tuple[int, ...]) -> None:
    """``(B + λI)⁻¹ ⊗ (A + λI)⁻¹``, without a second product."""
    state, damping = observed(residuals([TERMS[t] for t in terms])), 1e-3
    k = 0 if set(terms) <= set(JETS) else 1
    C = ESTIMATOR.curvature(state)
    inverse = PairEigen()(C, reference_context(damping)).blocks
    for name, block in C.blocks.items():
        assert isinstance(block, KroneckerSum)
        assert len(block.terms) == 1
        A, B = (M[name][k].dense() for M in (state.A, state.B))
        A, B = (M + damping * torch.eye(len(M), dtype=M.dtype) for M in (A, B))
        matrix = torch.kron(B, A)
        found = dense_block(inverse[name], torch.zeros(len(B), len(A), dtype=A.dtype))
        condition = float(torch.linalg.cond(matrix))
        assert_close(found, torch.linalg.inv(matrix), dimension=matrix.shape[0], condition=condition)


def test_a_step_without_points_for_a_group_leaves_its_factors() -> None:
    model = residuals()
    inside, on, side, again = model.problem.draw()
    whole = observed(model, [inside, on, side, again])
    for left, k in (([inside, on[:0], side, again[:0]], 1), ([inside[:0], on, side[:0], again], 0)):
        state = observed(model, [inside, on, side, again], left)
        for name in whole.A:
            assert torch.equal(state.A[name][k].dense(), whole.A[name][k].dense())
            assert torch.equal(state.B[name][k].dense(), whole.B[name][k].dense())
            assert state.observed[name] == ([2, 1] if k else [1, 2])


def test_with_another_loss_it_is_layer_covariance() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 3)).double()
    x, y = torch.rand(4, 2).double(), torch.rand(4, 3).double()
    blocks, ctx = partition(plain, lambda layer: True), reference_context()
    like = blocks.layout.zeros(like=blocks.like.detach())
    kinds = (TermCovariance, LayerCovariance)
    estimates: list[Any] = [kind(Dense(), Dense(), labels=Labels.EXACT) for kind in kinds]
    states: list[Any] = [e.init(like, ctx) for e in estimates]
    for _ in range(2):
        look = curvlab.objective(plain, nn.MSELoss(), x, y).evaluate(estimates[0].needs(), blocks, ctx)
        for estimator, state in zip(estimates, states, strict=True):
            estimator.observe(state, look, ctx)
    mine: list[Structure] = [states[0].A["0"][1], states[0].B["0"][1]]
    for M, expected in zip(mine, (states[1].A["0"], states[1].B["0"]), strict=True):
        assert_close(M.dense(), expected.dense())


# blocks that no layer explains


def test_an_unknown_coefficient_goes_to_the_fallback_and_is_trained() -> None:
    def unknown(u: pde.Field, x: Tensor) -> Tensor:
        return u.coefficient("kappa") * u.laplacian() - torch.sin(x[:, 0])

    model = residuals([pde.Term(unknown, pde.Inside(20)), TERMS[1]], unknowns={"kappa": 1.0})
    ours = optimizer("kfac-pinn", model)
    losses = [float(ours.step(pde.objective(model))) for _ in range(10)]
    assert losses[-1] < losses[0]
    rows = {row.parameter: row for row in ours.coverage()}
    assert rows["unknowns.kappa"].treatment == "fallback"
    assert rows["unknowns.kappa"].reason
    assert all(row.treatment == "kfac-pinn" for name, row in rows.items() if name != "unknowns.kappa")
    assert model.coefficients()["kappa"] != 1.0


def test_nested_derivatives_go_to_the_fallback_and_the_function_is_named() -> None:
    class Own(nn.Module):
        """An activation for which jets have no rule."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.erf(x)

    torch.manual_seed(0)
    problem = residuals().problem
    net = nn.Sequential(nn.Linear(2, 5), Own(), nn.Linear(5, 1)).double()
    model = pde.Residuals(net, problem).double()
    ours = optimizer("kfac-pinn", model)
    with pytest.warns(UserWarning, match="treats none of 4 parameters"):
        losses = [float(ours.step(pde.objective(model))) for _ in range(10)]
    assert losses[-1] < losses[0]
    for row in ours.coverage():
        assert row.treatment == "fallback"
        assert "jets have no rule for torch." in row.reason


# tasks


def trained(
    task: PdeTask, steps: int, dtype: torch.dtype = torch.float64
) -> tuple[list[float], Any, set[str]]:
    torch.manual_seed(0)
    made = task.workload(task.model(), dtype=dtype, device=torch.device("cpu"))
    ours, events = curvlab.optimizer("kfac-pinn", made.model), set[str]()
    ours.on_event = lambda event: events.add(event.name)
    whole = torch.arange(made.size)
    draw = Draw(whole, whole, whole)
    return [float(ours.step(made.objective(draw))) for _ in range(steps)], made, events


SMALL: dict[str, Any] = {"interior": 200, "test": 500}


@pytest.mark.parametrize(
    "task",
    [
        Burgers(**SMALL, hidden=(16, 16)),
        AllenCahn(**SMALL, hidden=(16,)),
        Helmholtz(**SMALL, hidden=(32,), boundary=60),
        KdV(**SMALL, hidden=(16,)),
        InversePoisson(**SMALL, hidden=(16, 16), boundary=60),
    ],
    ids=lambda task: type(task).__name__,
)
def test_the_loss_of_every_task_falls(task: PdeTask) -> None:
    """One, two and three terms, products of u and its derivatives, third derivatives, an unknown."""
    losses, _, events = trained(task, 30)
    assert losses[-1] < 0.7 * losses[0]
    assert events <= {"rejected"}


@pytest.mark.parametrize(
    "task", [Poisson(**SMALL), Heat(**SMALL, hidden=(64,))], ids=lambda task: type(task).__name__
)
def test_in_float32_no_factorization_fails(task: PdeTask) -> None:
    losses, made, events = trained(task, 25, torch.float32)
    assert losses[-1] < 0.1 * losses[0]
    assert events <= {"rejected"}
    assert made.metrics()["val_l2"] < 0.5
