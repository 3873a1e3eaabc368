"""What is computed under which arithmetic, where a precision makes a difference; and indices on their way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tomli
import torch
from torch import Tensor, nn

import curvlab
from curvlab.config import build_method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.placement import placed
from curvlab.engine.rebuilt import evaluate
from curvlab.errors import CheckpointError
from curvlab.precision.full import Full
from curvlab.protocols.arithmetic import Arithmetic, under
from curvlab.protocols.sampler import Draw
from curvlab.registry.loader import installed
from tests.engine.small_run import run_small, small_plan

#: the choices that are on, the innermost last
ON: list[str] = []


@dataclass(frozen=True)
class Named:
    """A choice that says when it is on."""

    name: str

    @contextmanager
    def on(self) -> Iterator[None]:
        ON.append(self.name)
        try:
            yield
        finally:
            ON.pop()


class Recorded(Full):
    """Full, with an arithmetic for the method and one for evaluations."""

    @property
    def arithmetic(self) -> Arithmetic:  # type: ignore[override]
        return Named("method")

    @property
    def evaluation(self) -> Arithmetic:  # type: ignore[override]
        return Named("evaluation")

    def inverse(self, A: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        SEEN.append(("inverse", ON[-1]))
        return super().inverse(A, shift)

    def gram_(self, M: Tensor, keep: float, X: Tensor, weight: float) -> Tensor:
        SEEN.append(("gram", ON[-1]))
        return super().gram_(M, keep, X, weight)

    def moved(self, indices: Tensor) -> Tensor:
        SEEN.append(("moved", str(len(indices))))
        return indices.clone()


SEEN: list[tuple[str, str]] = []


class Listening(nn.Module):
    """A linear model that says under what it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(("model", ON[-1] if ON else ""))
        y: Tensor = self.layer(x)
        return y


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    SEEN.clear()
    yield
    assert ON == []


@pytest.mark.parametrize("method", ["kfac", "hf-gn", "sgd"])
def test_models_are_evaluated_under_one_arithmetic_and_factors_made_under_the_other(method: str) -> None:
    torch.manual_seed(0)
    model, x, y = Listening(), torch.randn(8, 3), torch.randint(0, 2, (8,))
    optimizer = CurvatureOptimizer(build_method(installed(), method, {}), model, backend=Recorded())
    optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    assert {where for what, where in SEEN if what == "model"} == {"evaluation"}
    assert {where for what, where in SEEN if what in ("gram", "inverse")} <= {"method"}
    if method == "kfac":
        assert {what for what, _ in SEEN} == {"model", "gram", "inverse"}


def test_a_plain_loop_evaluates_as_its_caller_has_set() -> None:
    torch.manual_seed(0)
    model, x, y = Listening(), torch.randn(8, 3), torch.randint(0, 2, (8,))
    method = build_method(installed(), "kfac", {"labels": "data"})
    optimizer = CurvatureOptimizer(method, model, backend=Recorded())
    torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
    optimizer.step()
    assert {where for what, where in SEEN if what == "model"} == {""}
    assert {where for what, where in SEEN if what in ("gram", "inverse")} == {"method"}


def test_a_run_and_its_metrics_are_evaluated_under_the_same(tmp_path: Path) -> None:
    plan = replace(small_plan(steps=2, eval_every=1), backend=Recorded())
    metrics = type(plan.task.workload(plan.task.model(), dtype=torch.float32, device=torch.device("cpu")))
    kept = metrics.metrics

    def listened(self: Any) -> Any:
        SEEN.append(("metrics", ON[-1]))
        return kept(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "metrics", listened)
        run = run_small(tmp_path, plan)
        found = evaluate(plan, run.folder)
    assert [where for what, where in SEEN if what == "metrics"] == ["evaluation"] * 3
    assert found["metrics"] == run.summary["metrics"]
    assert [what for what, _ in SEEN if what == "moved"] == ["moved"] * 2


def test_an_index_that_two_purposes_share_is_moved_once() -> None:
    a, b = torch.arange(3), torch.arange(2)
    moved: list[Tensor] = []

    def move(t: Tensor) -> Tensor:
        moved.append(t)
        return t.clone()

    draw = placed(Draw(a, a, b, micro_batch=2), move)
    assert [id(t) for t in moved] == [id(a), id(b)]
    assert draw.gradient is draw.curvature
    assert draw.gradient is not a
    assert torch.equal(draw.acceptance, b)
    assert draw.micro_batch == 2


def test_nothing_is_entered_where_torchs_choice_stands() -> None:
    with under(None, Named("a"), None, Named("b")):
        assert ON == ["a", "b"]
    with under(Full().arithmetic, Full().evaluation):
        assert ON == []


class Elsewhere(Full):
    """As ``device = "auto"`` is on another machine: the same settings, and another name of the device."""

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu", 0)


def test_a_run_goes_on_on_the_device_it_was_made_on_and_is_evaluated_on_any(tmp_path: Path) -> None:
    run = run_small(tmp_path, small_plan(steps=2))
    elsewhere = replace(small_plan(steps=4), backend=Elsewhere())
    with pytest.raises(CheckpointError, match=r"was written on the device cpu, and .* would go on on cpu:0"):
        run_small(tmp_path, elsewhere, resume=run.folder)
    assert evaluate(elsewhere, run.folder)["metrics"] == run.summary["metrics"]
    assert run_small(tmp_path, small_plan(steps=4), resume=run.folder).summary["steps"] == 4


def test_a_run_records_the_device_that_auto_has_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    settings = {"device": "auto", "tf32": "forward", "pinned": True}
    config = {
        "task": {"use": "quadratic"}, "method": {"use": "sgd"}, "run": {"steps": 1},
        "precision": settings, "report": {"use": "quiet"},
    }  # fmt: skip
    run = curvlab.train(config, out=tmp_path)
    assert json.loads((run.folder / "manifest.json").read_text())["device"] == "cpu"
    kept = tomli.loads((run.folder / "resolved.toml").read_text())["precision"]
    assert {name: kept[name] for name in settings} == settings
