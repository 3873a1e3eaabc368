"""Teacher and student: the optimum is the teacher, and noise stays out of validation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from curvlab.protocols.sampler import Draw
from curvlab.tasks.supervised import SupervisedWorkload
from curvlab.tasks.teacher_student import TeacherStudent

TASK = TeacherStudent(inputs=6, hidden=(9, 5), outputs=3, size=500, validation_size=100)


def made(task: TeacherStudent) -> SupervisedWorkload:
    return task.workload(task.model(), dtype=torch.float64, device=torch.device("cpu"))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_student_that_is_the_teacher_has_validation_loss_zero(noise: float) -> None:
    task = replace(TASK, noise=noise)
    work = made(task)
    work.model.load_state_dict(task.teacher().state_dict())
    assert work.metrics() == {"val_loss": 0.0}


def test_the_noise_is_in_the_training_targets() -> None:
    """Its mean square is noise² within five standard errors: (1,500 numbers, variance 2σ⁴)."""
    task = replace(TASK, noise=0.5)
    work = made(task)
    work.model.load_state_dict(task.teacher().state_dict())
    n = torch.arange(work.size)
    loss = float(work.objective(Draw(n, n, n)).loss())
    assert abs(loss - 0.25) < 5 * 0.25 * (2 / 1500) ** 0.5


def test_noise_changes_nothing_but_the_training_targets() -> None:
    quiet, noisy = made(TASK), made(replace(TASK, noise=0.5))
    assert torch.equal(quiet.training.inputs, noisy.training.inputs)
    assert torch.equal(quiet.validation.targets, noisy.validation.targets)
    assert not torch.equal(quiet.training.targets, noisy.training.targets)


def test_teacher_and_student_may_differ_in_width() -> None:
    task = replace(TASK, teacher_hidden=(20,))
    assert next(task.teacher().parameters()).shape == (20, 6)
    assert next(task.model().parameters()).shape == (9, 6)
    assert made(task).metrics()["val_loss"] > 0


def test_the_teachers_outputs_are_of_unit_order() -> None:
    """Neither dead nor exploding, for whoever compares losses between widths."""
    spread = made(TASK).validation.targets.std(dim=0)
    assert bool(((spread > 0.2) & (spread < 5)).all()), spread
