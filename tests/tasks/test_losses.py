"""Tasks take their loss from the configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from curvlab.config import build, load
from curvlab.errors import ConfigError
from curvlab.objectives.losses import CrossEntropy, Huber, MeanSquaredError
from curvlab.registry.loader import installed


def task(**settings: Any) -> Any:
    data = {"task": settings, "method": {"use": "sgd"}, "run": {"steps": 1}}
    return build(load(data=data), installed()).task


def test_a_task_names_its_loss_and_its_settings() -> None:
    assert task(use="digits").loss == CrossEntropy()
    assert task(use="teacher-student").loss == MeanSquaredError()
    assert task(use="teacher-student", loss="huber").loss == Huber()
    smooth = task(use="digits", loss={"use": "cross-entropy", "label_smoothing": 0.1})
    assert smooth.loss == CrossEntropy(label_smoothing=0.1)
    model = smooth.model()
    work = smooth.workload(model, dtype=torch.float64, device=torch.device("cpu"))
    x, y = work.validation.rows(torch.arange(len(work.validation)))
    expected = torch.nn.functional.cross_entropy(model(x).detach(), y, label_smoothing=0.1)
    assert work.metrics()["val_loss"] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("cross-entrpy", 'unknown loss "cross-entrpy"'),
        ({"use": "huber", "delta": 0.0}, "delta = 0.0 must be positive"),
        ({"use": "heads", "losses": ["huber"], "weights": [1.0, 2.0]}, "2 weights for 1 losses"),
        ({"use": "cross-entropy", "classes": "third"}, 'expected one of "second", "last"'),
        ({"use": "relu"}, 'unknown loss "relu"'),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_in_words(loss: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        task(use="digits", loss=loss)
