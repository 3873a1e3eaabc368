"""The supervised workload: which examples an objective sees, and what metrics are means of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvlab.objectives.losses import CrossEntropy
from curvlab.protocols.sampler import Draw
from curvlab.tasks import supervised
from curvlab.tasks.supervised import Examples, SupervisedWorkload, correct, evaluating


def workload(n: int = 23, **settings: object) -> SupervisedWorkload:
    torch.manual_seed(0)
    x, y = torch.randn(n, 4, dtype=torch.float64), torch.randint(0, 3, (n,))
    examples = Examples(x, y)
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    measures = {"accuracy": correct}
    return SupervisedWorkload(model, CrossEntropy(), examples, examples, measures=measures, **settings)


def test_metrics_are_means_over_all_examples_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = workload().metrics()
    monkeypatch.setattr(supervised, "CHUNK", 5)
    assert workload().metrics() == pytest.approx(whole, rel=1e-12)
    plain = workload()
    with torch.no_grad():
        outputs = plain.model.eval()(plain.validation.inputs)
    assert whole["val_loss"] == pytest.approx(
        float(nn.functional.cross_entropy(outputs, plain.validation.targets))
    )
    hits = (outputs.argmax(1) == plain.validation.targets).double().mean()
    assert whole["val_accuracy"] == pytest.approx(float(hits))


def test_metrics_leave_gradients_modes_and_random_numbers_alone() -> None:
    work = workload()
    work.model[2].eval()
    before = torch.get_rng_state()
    work.metrics()
    assert [m.training for m in work.model] == [True, True, False]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in work.model.parameters())


def test_modes_come_back_after_an_error() -> None:
    work = workload()

    def fail() -> None:
        with evaluating(work.model):
            assert not work.model.training
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert all(m.training for m in work.model.modules())


def test_training_metrics_are_measured_when_asked_for() -> None:
    assert set(workload().metrics()) == {"val_loss", "val_accuracy"}
    measured = workload(on_training=True).metrics()
    assert measured["train_loss"] == measured["val_loss"]  # the examples are the same here
    assert measured["train_accuracy"] == measured["val_accuracy"]


def test_an_objective_sees_the_examples_of_its_draw() -> None:
    work = workload()
    gradient, curvature, acceptance = torch.tensor([5, 2, 5]), torch.tensor([1]), torch.tensor([7, 8])
    objective = work.objective(Draw(gradient, curvature, acceptance))
    for sample, indices in (
        (objective.gradient_sample, gradient),
        (objective.curvature_sample, curvature),
        (objective.acceptance_sample, acceptance),
    ):
        assert torch.equal(sample[0], work.training.inputs[indices])
        assert torch.equal(sample[1], work.training.targets[indices])


def test_one_draw_for_three_purposes_is_selected_once() -> None:
    work, same = workload(), torch.tensor([4, 0])
    objective = work.objective(Draw(same, same, same))
    assert objective.curvature_sample is objective.gradient_sample
    assert objective.acceptance_sample is objective.gradient_sample


def test_one_held_out_draw_for_two_purposes_is_selected_once() -> None:
    work, other = workload(), torch.tensor([4, 0])
    objective = work.objective(Draw(torch.tensor([1]), other, other))
    assert objective.acceptance_sample[0] is objective.curvature_sample[0]


def test_an_autoencoders_targets_are_its_inputs_and_stored_once() -> None:
    x = torch.rand(6, 3)
    moved = Examples(x, x).to(dtype=torch.float64, device=torch.device("cpu"))
    assert moved.targets is moved.inputs
    inputs, targets = moved.rows(torch.tensor([1, 3]))
    assert targets is inputs


def test_class_indices_keep_their_dtype() -> None:
    moved = Examples(torch.rand(2, 3), torch.tensor([0, 1])).to(
        dtype=torch.float64, device=torch.device("cpu")
    )
    assert moved.inputs.dtype == torch.float64
    assert moved.targets.dtype == torch.int64
