"""The tasks: their equations hold for their solutions, and the methods solve them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab import pde
from curvlab.errors import ConfigError
from curvlab.pde.task import PdeTask
from curvlab.pde.workload import PdeWorkload
from curvlab.protocols.sampler import Draw
from curvlab.testing.asserts import assert_close
from curvlab_pinn.references.allen_cahn import allen_cahn_solution
from curvlab_pinn.references.burgers import burgers_at
from curvlab_pinn.references.kdv import kdv_solution
from curvlab_pinn.references.solution import Solution
from curvlab_pinn.tasks.allen_cahn import AllenCahn
from curvlab_pinn.tasks.burgers import Burgers
from curvlab_pinn.tasks.heat import Heat
from curvlab_pinn.tasks.helmholtz import Helmholtz
from curvlab_pinn.tasks.inverse_poisson import InversePoisson
from curvlab_pinn.tasks.kdv import KdV
from curvlab_pinn.tasks.poisson import SOLUTIONS, Poisson
from tests.limits.registered import optimizer

SMALL: dict[str, Any] = {"hidden": (16,), "interior": 90, "boundary": 24, "test": 500}
WIDE = {**SMALL, "hidden": (64,)}

SOFT: list[PdeTask] = [
    *(Poisson(dimension=d, solution=s) for d, s in zip((2, 3, 4, 1), SOLUTIONS, strict=True)),
    Heat(),
    Heat(dimension=4),
    Helmholtz(a=2, b=3, k=0.5),
    InversePoisson(kappa=1.7, start=1.7),
]

soft = pytest.mark.parametrize("task", SOFT, ids=lambda t: type(t).__name__)


class Exact(nn.Module):
    """A solution in closed form, in the place of a network."""

    def __init__(self, solution: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.solution, self.unused = solution, nn.Parameter(torch.zeros(1).double())

    def forward(self, x: Tensor) -> Tensor:
        """The solution."""
        return self.solution(x)


def workload(task: PdeTask, dtype: torch.dtype = torch.float64) -> PdeWorkload:
    torch.manual_seed(0)
    return task.workload(task.model(), dtype=dtype, device=torch.device("cpu"))


def trained(made: PdeWorkload, ours: Any, steps: int) -> dict[str, float]:
    whole = torch.arange(made.size)
    for _ in range(steps):
        ours.step(made.objective(Draw(whole, whole, whole)))
    return dict(made.metrics())


@soft
def test_a_solution_has_no_residual(task: PdeTask) -> None:
    """In every term, at its points."""
    problem = task.problem()
    assert problem.reference is not None
    exact = pde.Residuals(Exact(problem.reference), problem)
    rows = problem.rows(problem.draw(5))
    assert set(rows[:, -1].tolist()) == set(range(len(problem.terms)))
    residuals = exact(rows)
    assert_close(residuals, torch.zeros_like(residuals), dimension=100, scale=100.0)
    other = pde.Residuals(Exact(lambda x: problem.reference(x) + 0.1 * x[:, 0] ** 4), problem)  # type: ignore[misc]
    assert float(other(rows).detach().abs().max()) > 0.01


def test_the_exact_solution_of_burgers_has_no_residual() -> None:
    """By differences of it, away from the shock; hard conditions hold for any network."""
    task = Burgers()
    x = task.problem().draw(1)[0]
    x = x[(x[:, 1].abs() > 0.05) & (x[:, 0] > 0.02) & (x[:, 0] < 0.98) & (x[:, 1].abs() < 0.98)][:200]
    require_no_residual(task, lambda x: burgers_at(x, task.nu), x, step=1e-3, room=1e-5)


@cache
def spectral(name: str) -> Solution:
    return {"allen-cahn": allen_cahn_solution, "kdv": kdv_solution}[name]()


@pytest.mark.parametrize(("name", "task"), [("allen-cahn", AllenCahn()), ("kdv", KdV())])
def test_the_spectral_solution_has_no_residual(name: str, task: PdeTask) -> None:
    x = task.problem().draw(1)[0][:200]
    x = x[(x[:, 0] > 0.05) & (x[:, 0] < 0.95) & (x[:, 1].abs() < 0.95)]
    require_no_residual(task, spectral(name).at, x, step=1e-3, room=1e-3)


def require_no_residual(
    task: PdeTask, solution: Callable[[Tensor], Tensor], x: Tensor, step: float, room: float
) -> None:
    """Central differences of order four stand for derivatives."""
    weights = {
        (): {0: 1.0},
        1: {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12},
        2: {-2: -1 / 12, -1: 4 / 3, 0: -5 / 2, 1: 4 / 3, 2: -1 / 12},
        3: {-3: 1 / 8, -2: -1.0, -1: 13 / 8, 1: -13 / 8, 2: 1.0, 3: -1 / 8},
    }

    class Differences(pde.Field):
        def _of(self, derivative: Any) -> Tensor:
            order = len(derivative)
            off = torch.zeros(2).double()
            if order:
                off[derivative[0]] = step
            found = sum(w * solution(x + k * off) for k, w in weights[order or ()].items())
            return found / step**order  # type: ignore[operator, no-any-return]

    (term,) = task.problem().terms
    r = term.residual(Differences(("t", "x"), 1), x)
    assert float(r.abs().max()) < room


@pytest.mark.parametrize(
    ("task", "initial"),
    [
        (Burgers(), lambda x: -torch.sin(math.pi * x)),
        (AllenCahn(), lambda x: x * x * torch.cos(math.pi * x)),
        (KdV(), lambda x: torch.cos(math.pi * x)),
    ],
    ids=lambda t: type(t).__name__,
)
def test_hard_conditions_hold_for_any_network(task: PdeTask, initial: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    made = task.model().double()
    assert isinstance(made, pde.Residuals)
    x, t = torch.linspace(-1, 1, 21).double(), torch.linspace(0, 1, 21).double()
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    start = made.u(torch.stack([zero, x], 1))[:, 0]
    assert_close(start, initial(x), dimension=10)
    left, right = (made.u(torch.stack([t, side], 1))[:, 0] for side in (-one, one))
    assert_close(left, right, dimension=100, scale=1.0)
    if isinstance(task, Burgers):
        assert_close(left, zero, dimension=10, scale=1.0)


@soft
def test_the_error_of_a_network_of_zeros_is_one(task: PdeTask) -> None:
    made = workload(task)
    for p in made.model.net.parameters():
        nn.init.zeros_(p)
    found = made.metrics()
    assert found["val_l2"] == pytest.approx(1.0)
    exact = pde.Residuals(Exact(made.problem.reference), made.problem)  # type: ignore[arg-type]
    assert float(torch.linalg.vector_norm(exact.u(made.test) - made.solution)) < 1e-12


def test_heat_is_given_at_the_start_and_on_the_walls_and_not_at_the_end() -> None:
    task = Heat(dimension=3, boundary=50)
    inside, start, walls = task.problem().draw()
    assert [len(inside), len(start), len(walls)] == [900, 10, 40]
    assert bool((start[:, 0] == 0).all())
    assert not bool((walls[:, 0] == 1).any())
    assert bool(((walls[:, 1:] == 0) | (walls[:, 1:] == 1)).any(1).all())
    terms = task.problem().terms
    assert [term.weight for term in terms] == pytest.approx([1.0, 0.2, 0.8])  # one mean over all of them


@pytest.mark.parametrize(
    "task", [Poisson(**SMALL), Heat(**{**SMALL, "dimension": 3})], ids=["poisson", "heat"]
)
def test_the_method_solves_what_adamw_does_not(task: PdeTask) -> None:
    """In forty steps, each with a search; AdamW has hardly begun with as many gradients."""
    name = "kfac-pinn" if isinstance(task, Poisson) else "lm"  # of two terms, of any number
    made = workload(task)
    found = trained(made, optimizer(name, made.model), 40)["val_l2"]
    other = workload(task)
    beside = trained(other, optimizer("adamw", other.model, lr=1e-2), 40)["val_l2"]
    assert found < 0.5
    assert found < 0.5 * beside


def test_in_float32_no_factorization_fails() -> None:
    """With the default λ, 1e-8, below the rounding of every factor: the loss falls as in float64."""
    made, events = workload(Poisson(**WIDE), torch.float32), list[str]()
    ours = curvlab.optimizer("kfac-pinn", made.model, precision="float32")
    ours.on_event = lambda event: events.append(event.name)
    found = trained(made, ours, 25)["val_l2"]
    assert set(events) <= {"rejected"}
    assert found < 0.3


def test_an_unknown_coefficient_is_found() -> None:
    made = workload(InversePoisson(hidden=(32,), interior=300, boundary=80, test=500))
    assert made.metrics()["val_kappa"] == 1.0
    found = trained(made, optimizer("lm", made.model), 40)
    assert abs(found["val_kappa"] - 1.7) < 1e-4
    assert found["val_l2"] < 1e-3


def test_noise_is_added_to_measurements_alone() -> None:
    clean, noisy = (InversePoisson(noise=s).problem().terms[2].points for s in (0.0, 0.1))
    assert torch.equal(clean.points, noisy.points)  # type: ignore[attr-defined]
    off = noisy.data - clean.data  # type: ignore[operator]
    assert 0.05 < float(off.std()) < 0.15


def test_points_are_those_of_their_seed_alone() -> None:
    same, other = workload(Poisson(**SMALL)), workload(Poisson(**{**SMALL, "data_seed": 1}))
    assert torch.equal(workload(Poisson(**SMALL)).rows, same.rows)
    assert not torch.equal(other.rows, same.rows)
    assert not torch.equal(other.test, same.test)
    assert same.size == 114


def test_wrong_settings_are_all_named() -> None:
    with pytest.raises(ConfigError) as failed:
        Poisson(dimension=0, interior=0, hidden=(0,))
    assert {fault.path for fault in failed.value.faults} == {"dimension", "interior", "hidden.0"}
    for make, message in (
        (lambda: Heat(dimension=1), "dimension = 1"),
        (lambda: Helmholtz(a=0), "a = 0"),
        (lambda: Helmholtz(k=0.0), "k = 0"),
        (lambda: InversePoisson(kappa=-1.0), "kappa = -1"),
        (lambda: InversePoisson(measured=0), "measured = 0"),
        (lambda: Burgers(nu=0.0), "nu = 0"),
        (lambda: KdV(resample=-1), "resample = -1"),
        (lambda: AllenCahn(test=0), "test = 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


@pytest.mark.parametrize(
    ("task", "axes"),
    [
        (Poisson(dimension=1, hidden=(4,), test=500), ("x", "u")),
        (Poisson(hidden=(4,), test=500), ("x", "y")),
        (Heat(hidden=(4,), test=500), ("t", "x")),
        (Poisson(dimension=3, hidden=(4,)), None),
    ],
    ids=["line", "square", "heat", "cube"],
)
def test_pictures_show_the_solution_and_the_error_that_is_measured(
    task: PdeTask, axes: tuple[str, str] | None
) -> None:
    made = workload(task)
    pictures = made.pictures()
    assert [(p.title, p.axes) for p in pictures] == ([("solution", axes), ("error", axes)] if axes else [])
    if not axes:
        return
    solution, error = (p.content.values for p in pictures)
    assert torch.equal(error["network − exact"], solution["network"] - solution["exact"])
    size = float(error["network − exact"].norm() / solution["exact"].norm())
    assert size == pytest.approx(made.metrics()["val_l2"], rel=0.2)  # on other points
    if isinstance(task, Heat):  # decays in time, and rises in space
        assert solution["exact"][0, -1] > solution["exact"][-1, -1] > solution["exact"][-1, 0]


def test_points_of_burgers_follow_the_root_of_the_residual_where_they_are_drawn_again() -> None:
    """The mean residual is that under a density of ``(√|r| / mean √|r| + 1) / 2``."""
    torch.manual_seed(0)
    task = Burgers(hidden=(8,), interior=5000, resample=1)
    made = task.workload(task.model(), dtype=torch.float64, device=torch.device("cpu"))
    everything = torch.arange(made.size)
    sizes = []
    for _ in range(3):
        made.objective(Draw(everything, everything, everything))
        sizes.append(float(made.model(made.rows).detach().abs().mean()))
    r = made.model(made.fresh).detach().abs()
    expected = 0.5 * float(r.pow(1.5).mean() / r.sqrt().mean() + r.mean())
    assert expected > 1.08 * float(r.mean())
    assert sizes == pytest.approx([float(r.mean()), expected, expected], rel=0.03)
