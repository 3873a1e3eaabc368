"""The quadratic: its spectrum, its optimum and its noise are what its settings say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from curvlab.linalg.operator import dense
from curvlab.model.partition import partition
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.sampler import Draw
from curvlab.tasks.quadratic import Quadratic, QuadraticWorkload

CTX = Context(0, 0.0, Full("float64"), torch.Generator())
TASK = Quadratic(dimension=12, condition=50.0, noise=0.3, size=400)


def made(task: Quadratic = TASK) -> QuadraticWorkload:
    torch.manual_seed(0)
    return task.workload(task.model(), dtype=torch.float64, device=torch.device("cpu"))


def draw(*indices: int) -> Draw:
    chosen = torch.tensor(indices)
    return Draw(chosen, chosen, chosen)


def move_to_optimum(workload: QuadraticWorkload) -> None:
    with torch.no_grad():
        workload.bowl.theta.copy_(workload.bowl.optimum)


@pytest.mark.parametrize("spectrum", ["geometric", "linear"])
def test_the_spectrum_is_the_one_asked_for(spectrum: str) -> None:
    task = replace(TASK, spectrum=spectrum)
    values = torch.linalg.eigvalsh(made(task).bowl.curvature)
    torch.testing.assert_close(values, task.eigenvalues().flip(0), rtol=1e-12, atol=1e-14)
    assert float(values[-1] / values[0]) == pytest.approx(50.0)


def test_the_known_optimum_is_the_optimum() -> None:
    workload = made()
    move_to_optimum(workload)
    assert workload.metrics() == {"val_loss": 0.0, "val_distance": 0.0}
    full = workload.objective(draw(*range(workload.size)))
    full()
    assert float(workload.bowl.theta.grad.norm()) < 1e-13


def test_one_newton_step_on_all_examples_arrives() -> None:
    workload = made()
    blocks = partition(workload.model, lambda layer: False)
    seen = workload.objective(draw(*range(workload.size))).evaluate(Needs(products=1), blocks, CTX)
    matrix = dense(seen.ggn, seen.gradient)
    with torch.no_grad():
        workload.bowl.theta.sub_(torch.linalg.solve(matrix, seen.gradient.flat))
    assert workload.metrics()["val_loss"] < 1e-20


def test_the_gradients_noise_has_covariance_noise_squared_times_the_matrix() -> None:
    """2,000 examples: entries of the empirical covariance are within five of their standard errors."""
    workload = made(replace(TASK, size=2000, noise=2.0))
    expected = 4.0 * workload.bowl.curvature
    n = workload.size
    got = workload.pulls.mT @ workload.pulls / n
    diagonal = expected.diagonal()
    error = ((expected.square() + diagonal.outer(diagonal)) / n).sqrt()  # Isserlis
    assert float(((got - expected).abs() / error).max()) < 5


def test_without_noise_every_batch_is_the_same() -> None:
    workload = made(replace(TASK, noise=0.0))
    assert torch.equal(workload.objective(draw(0)).loss(), workload.objective(draw(5, 7)).loss())


def test_the_batch_is_the_mean_of_its_examples() -> None:
    workload = made()
    alone = [float(workload.objective(draw(k)).loss()) for k in (3, 8, 11)]
    assert float(workload.objective(draw(3, 8, 11)).loss()) == pytest.approx(sum(alone) / 3)


def test_evaluation_answers_what_is_needed() -> None:
    workload = made()
    blocks = partition(workload.model, lambda layer: False)
    chosen = Draw(torch.arange(4), torch.arange(9), torch.arange(4))
    objective = workload.objective(chosen)
    plain = objective.evaluate(Needs(), blocks, CTX)
    assert (plain.examples, plain.curvature_examples, plain.ggn, plain.layers) == (4, 9, None, {})
    asked = objective.evaluate(Needs(layers=frozenset({Labels.DATA})), blocks, CTX)
    assert asked.layers == {Labels.DATA: {}}
    assert torch.equal(plain.loss, objective())
    assert torch.equal(plain.gradient.flat, workload.bowl.theta.grad)


def test_the_acceptance_sample_is_its_own() -> None:
    workload = made()
    one, two = torch.tensor([0, 1]), torch.tensor([2, 3, 4])
    objective = workload.objective(Draw(one, one, two))
    blocks = partition(workload.model, lambda layer: False)
    seen = objective.evaluate(Needs(), blocks, CTX)
    assert torch.equal(objective.loss(), workload.objective(Draw(two, two, two)).loss())
    assert torch.equal(objective.start(seen), objective.loss())
    assert float(objective.start(seen)) != float(seen.loss)


def test_a_cast_objective_has_the_same_loss_in_another_dtype() -> None:
    workload = made()
    objective = workload.objective(draw(1, 2))
    narrow = objective.cast(torch.float32).loss({"theta": workload.bowl.theta.detach().float()})
    assert narrow.dtype == torch.float32
    assert float(narrow) == pytest.approx(float(objective.loss()), rel=1e-5)
