"""The loop: what is due when, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from curvlab.engine.broadcast import Broadcast
from curvlab.engine.interrupts import Interrupts
from curvlab.engine.loop import training_loop
from curvlab.engine.plan import Plan
from curvlab.engine.training import Mark, prepare
from curvlab.errors import Stopped
from curvlab.protocols.report import EvalRecord, Event, Reporter, StepRecord
from tests.engine.small_run import PLAIN, Restless, small_plan


class Diary(Reporter):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.evals: list[EvalRecord] = []
        self.events: list[Event] = []
        self.saved: list[int] = []

    def stepped(self, record: StepRecord) -> None:
        self.steps.append(record)

    def evaluated(self, record: EvalRecord) -> None:
        self.evals.append(record)

    def happened(self, event: Event) -> None:
        self.events.append(event)


def looped(
    plan: Plan, on_save: Callable[[Interrupts], None] | None = None, diary: Diary | None = None
) -> tuple[Diary, Any]:
    torch.manual_seed(0)
    diary, tell, interrupts = diary or Diary(), Broadcast(), Interrupts()
    training = prepare(plan, tell.happened)
    tell.open(diary, (), training.progress.events)

    def save() -> Path:
        diary.saved.append(training.progress.step)
        if on_save is not None:
            on_save(interrupts)
        return Path(f"step-{training.progress.step}")

    try:
        training_loop(training, tell, interrupts, save)
    except Stopped:
        diary.events.append(Event("stopped", training.progress.step, {}))
    return diary, training


#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# 72 examples in batches of 16: epochs end within steps 5, 9, 14, 18, …


def test_steps_are_logged_first_last_and_every_log_every() -> None:
    diary, _ = looped(small_plan(PLAIN, steps=11, log_every=4))
    assert [r.step for r in diary.steps] == [1, 4, 8, 11]


def test_evaluations_and_checkpoints_come_once_an_epoch_and_at_the_end() -> None:
    diary, _ = looped(small_plan(PLAIN, steps=16, eval_every=None, checkpoint_every=None))
    assert [r.step for r in diary.evals] == [5, 9, 14, 16]
    assert diary.saved == [5, 9, 14, 16]


def test_evaluations_and_checkpoints_come_as_often_as_asked_and_at_the_end() -> None:
    diary, _ = looped(small_plan(PLAIN, steps=11, eval_every=3, checkpoint_every=5))
    assert [r.step for r in diary.evals] == [3, 6, 9, 11]
    assert diary.saved == [5, 10, 11]


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 3), (1, 5), (2, 9), (4, 18)])
def test_a_budget_of_epochs_ends_with_the_step_that_completes_them(epochs: float, steps: int) -> None:
    _, training = looped(small_plan(PLAIN, epochs=epochs))
    assert training.progress.step == steps
    assert training.progress.examples == 16 * steps
    assert training.epochs >= epochs


def test_a_budget_of_seconds_counts_training_alone() -> None:
    slow = Restless(slow=0.02)
    _, training = looped(small_plan(PLAIN, task=slow, seconds=0.1), on_save=lambda _: time.sleep(0.2))
    assert 0.1 <= training.progress.seconds < 0.2
    assert 2 <= training.progress.step <= 5


def test_records_count_steps_from_one_and_hold_no_tensor() -> None:
    diary, _ = looped(small_plan(steps=4, log_every=1))
    assert [r.step for r in diary.steps] == [1, 2, 3, 4]
    assert [r.examples for r in diary.steps] == [16, 32, 48, 64]
    assert [r.epoch for r in diary.steps] == [pytest.approx(k * 16 / 72) for k in (1, 2, 3, 4)]
    for record in diary.steps:
        assert not any(isinstance(value, torch.Tensor) for value in vars(record).values())
        assert type(record.loss) is float
    seconds = [r.seconds for r in diary.steps]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_metrics_are_computed_before_the_checkpoint_of_the_same_step() -> None:
    class Ordered(Diary):
        def evaluated(self, record: EvalRecord) -> None:
            super().evaluated(record)
            assert record.step not in self.saved

    diary, _ = looped(small_plan(PLAIN, steps=4, eval_every=2, checkpoint_every=2), diary=Ordered())
    assert [r.step for r in diary.evals] == diary.saved == [2, 4]


def test_a_signal_stops_after_the_step_with_a_checkpoint_and_no_evaluation() -> None:
    def stop(interrupts: Interrupts) -> None:
        interrupts.caught = "SIGTERM"

    diary, training = looped(small_plan(PLAIN, steps=20, checkpoint_every=3, eval_every=3), on_save=stop)
    assert training.progress.step == 3
    assert diary.saved == [3], "the step has a checkpoint already: it is not written twice"
    assert [e.name for e in diary.events] == ["signal", "stopped"]


def test_a_signal_before_the_first_step_leaves_a_checkpoint_too() -> None:
    torch.manual_seed(0)
    tell, interrupts, saved = Broadcast(), Interrupts(), []
    training = prepare(small_plan(PLAIN), tell.happened)
    tell.open(Diary(), (), {})
    interrupts.caught = "SIGINT"
    with pytest.raises(Stopped) as stopped:
        training_loop(
            training, tell, interrupts, lambda: saved.append(training.progress.step) or Path("step-0")
        )  # type: ignore[func-returns-value]
    assert stopped.value.exit_code == 130
    assert saved == [0]
    assert training.progress.step == 0


def test_the_best_is_the_best_in_the_direction_the_task_says() -> None:
    class Scripted(Restless):
        judged_by = ("val_score", True)

        def workload(self, model: Any, **where: Any) -> Any:
            base = super().workload(model, **where)
            values = iter([0.5, 0.9, float("nan"), 0.7])
            base.metrics = lambda: {"val_score": next(values)}  # type: ignore[method-assign]
            return base

    plan = small_plan(PLAIN, task=Scripted(), steps=4, eval_every=1)
    _, training = looped(plan)
    assert training.progress.best == {"metric": "val_score", "value": 0.9, "step": 2}
    assert training.progress.metrics == {"val_score": 0.7}


def test_evaluating_more_often_changes_no_parameter() -> None:
    class Drawing(Restless):
        """Its metrics draw from torch's global generator, as dropout in training mode would."""

        def workload(self, model: Any, **where: Any) -> Any:
            base = super().workload(model, **where)
            base.metrics = lambda: {"val_loss": float(torch.rand(()))}  # type: ignore[method-assign]
            return base

    _, seldom = looped(small_plan(PLAIN, task=Drawing(), eval_every=100))
    _, often = looped(small_plan(PLAIN, task=Drawing(), eval_every=1))
    for a, b in zip(seldom.model.parameters(), often.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_mark_is_due_once_per_occasion() -> None:
    mark = Mark()
    assert not mark.due(None, 0, 0)
    assert mark.due(None, 5, 1)
    assert mark.due(5, 5, 0)
    assert not mark.due(4, 5, 1)
    mark.set(5, 1)
    assert not mark.due(5, 5, 1)
    assert not mark.due(None, 6, 1)


def test_a_task_without_metrics_ends() -> None:
    class Mute(Restless):
        def workload(self, model: Any, **where: Any) -> Any:
            base = super().workload(model, **where)
            base.metrics = lambda: dict[str, float]()  # type: ignore[method-assign]
            return base

    diary, training = looped(small_plan(PLAIN, task=Mute(), steps=3))
    assert training.progress.step == 3
    assert diary.evals[-1].metrics == {}
    assert training.progress.best is None


def test_the_loop_costs_less_than_five_per_cent_of_a_step_of_13_ms() -> None:
    """Timed on steps that cost next to nothing, so that what is measured is the loop's own time."""
    steps = 200

    def by_loop() -> float:
        seldom = {"eval_every": 10**9, "checkpoint_every": 10**9}
        _, training = looped(small_plan(PLAIN, steps=steps, log_every=10, **seldom))
        return float(training.progress.seconds)

    def by_hand() -> float:
        torch.manual_seed(0)
        training = prepare(small_plan(PLAIN), lambda event: None)
        begun = time.process_time()
        for _ in range(steps):
            draw = training.samples.draw()
            training.optimizer.step(training.workload.objective(draw))
        return time.process_time() - begun

    def timed(work: Callable[[], float]) -> float:
        begun = time.process_time()
        work()
        return time.process_time() - begun

    overheads = sorted((timed(by_loop) - timed(by_hand)) / steps for _ in range(3))
    assert overheads[1] < 0.05 * 13e-3, f"{overheads[1] * 1e6:.0f} µs a step"
