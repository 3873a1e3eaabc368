"""Every way a run may end but the good one: signals, divergence, bugs; and who is told."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from curvlab.engine import checkpoint
from curvlab.engine.run import train_plan
from curvlab.errors import Diverged, OutOfMemory, RunFolderError
from curvlab.protocols.report import EvalRecord, Reporter, StepRecord
from curvlab.reporting.rundir import RunDir
from curvlab.reporting.runlog import RunLog
from tests.engine.small_run import PLAIN, Restless, last_tensors, run_small, same, small_plan, stopped_at

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def newest_of(folder: Path) -> tuple[Path, tuple[str, ...]]:
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return found[0].path, found[1]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)],
)
def test_a_signal_ends_the_run_with_a_whole_checkpoint_of_its_last_step(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder, error = stopped_at(tmp_path, 5, number)
    assert error.exit_code == code
    assert f"curvlab resume {folder}" in str(error)
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    assert found[0].step == 5
    summary = RunDir(folder).summary
    assert (summary["exit_reason"], summary["exit_code"]) == (number.name.lower(), code)
    (event,) = RunDir(folder).events()
    assert (event["name"], event["step"], event["detail"]["signal"]) == ("signal", 5, number.name)


def test_a_second_ctrl_c_stops_at_once_and_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    folder, error = stopped_at(tmp_path, 5, signal.SIGINT, signal.SIGINT)
    assert error.exit_code == 130
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    assert found[0].step == 3, "no time was taken for another"
    assert RunDir(folder).summary["exit_code"] == 130
    same(run_small(tmp_path / "whole"), run_small(tmp_path, small_plan(), resume=folder))


def test_a_run_that_turns_non_finite_ends_with_the_last_good_checkpoint_intact(tmp_path: Path) -> None:
    peaceful = run_small(tmp_path / "peaceful", small_plan(steps=9))
    with pytest.raises(Diverged) as diverged:
        run_small(tmp_path / "poisoned", small_plan(task=Restless(poison=10)))
    (folder,) = (tmp_path / "poisoned").iterdir()
    last = folder / "checkpoints" / "step-00000009"
    message = str(diverged.value)
    assert diverged.value.exit_code == 5
    assert "step 10" in message, "the step, counted from 0"
    assert str(last) in message
    assert (folder / "checkpoints" / "latest").read_text() == "step-00000009\n"
    assert newest_of(folder) == (last, ())
    assert last_tensors(folder) == last_tensors(peaceful.folder)
    summary = RunDir(folder).summary
    assert (summary["exit_reason"], summary["exit_code"], summary["steps"]) == ("diverged", 5, 10)
    assert summary["message"] == message


@dataclass(frozen=True)
class Spoiling(Reporter):
    """Makes a number of the model infinite after a step."""

    at: int
    models: ClassVar[list[nn.Module]] = []

    def stepped(self, record: StepRecord) -> None:
        if record.step == self.at:
            with torch.no_grad():
                next(self.models[-1].parameters()).view(-1)[0] = torch.inf


@dataclass(frozen=True)
class Watched(Restless):
    """Shows its model to ``Spoiling``."""

    def model(self) -> nn.Module:
        Spoiling.models.append(super().model())
        return Spoiling.models[-1]


@pytest.mark.parametrize(
    ("at", "steps", "last"), [(6, 30, 3), (8, 8, 6)], ids=["on its cadence", "at the end"]
)
def test_no_checkpoint_holds_a_number_that_is_not_finite(
    tmp_path: Path, at: int, steps: int, last: int
) -> None:
    """Neither one that is due nor the last of a run; the one before stays the newest, and the run ends."""
    plan = small_plan(
        PLAIN, task=Watched(), reporters=(Spoiling(at),), steps=steps, log_every=1, eval_every=40
    )
    with pytest.raises(
        Diverged,
        match=rf"step {at}: no checkpoint was written, because these tensors are not finite: model/0.weight",
    ):
        run_small(tmp_path, plan)
    (folder,) = tmp_path.iterdir()
    newest = folder / "checkpoints" / f"step-{last:08d}"
    assert newest_of(folder) == (newest, ())
    assert all(bool(t.isfinite().all()) for t in checkpoint.load(newest).tensors.values())
    summary = RunDir(folder).summary
    assert (summary["exit_reason"], summary["checkpoint"]) == ("diverged", f"checkpoints/{newest.name}")


def test_a_mask_that_the_model_is_built_with_is_no_fault(tmp_path: Path) -> None:
    run_small(tmp_path, small_plan(PLAIN, task=Masked(), steps=3))
    (folder,) = tmp_path.iterdir()
    assert checkpoint.newest(folder / "checkpoints") is not None


@dataclass(frozen=True)
class Masked(Restless):
    """With a buffer of minus infinity."""

    def model(self) -> nn.Module:
        model = super().model()
        model.register_buffer("mask", torch.full((2,), -torch.inf))
        return model


def test_an_unforeseen_error_is_raised_as_it_is_and_summed_up(tmp_path: Path) -> None:
    class Broken(Restless):
        def workload(self, model: Any, **where: Any) -> Any:
            base = super().workload(model, **where)

            def metrics() -> Mapping[str, float]:
                raise ZeroDivisionError("a bug of the task")

            base.metrics = metrics  # type: ignore[method-assign]
            return base

    with pytest.raises(ZeroDivisionError):
        run_small(tmp_path, small_plan(task=Broken()))
    (folder,) = tmp_path.iterdir()
    summary = RunDir(folder).summary
    assert (summary["exit_reason"], summary["exit_code"]) == ("failed", 1)
    assert summary["message"] == "a bug of the task"


def test_reporters_of_the_plan_are_told_from_start_to_finish(tmp_path: Path) -> None:
    heard: list[str] = []

    class Listener(Reporter):
        def started(self, manifest: Mapping[str, Any]) -> None:
            heard.append(f"started {manifest['budget']['steps']}")

        def evaluated(self, record: EvalRecord) -> None:
            heard.append(f"evaluated {record.step}")

        def finished(self, summary: Mapping[str, Any]) -> None:
            heard.append(f"finished {summary['steps']}")

    run_small(tmp_path, small_plan(PLAIN, steps=8, eval_every=7, reporters=(Listener(),)))
    assert heard == ["started 8", "evaluated 7", "evaluated 8", "finished 8"]


class Act(Reporter):
    """Does something when a step is logged."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        self.at, self.act = at, act

    def stepped(self, record: StepRecord) -> None:
        if record.step == self.at:
            self.act()


def move(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def swap(folder: Path) -> None:
    """Another folder of the same content takes its place."""
    move(folder)
    shutil.copytree(folder.with_name("elsewhere"), folder)


@pytest.mark.parametrize(
    ("at", "act", "log_every"),
    [(4, move, 1), (5, move, 5), (7, move, 7), (5, swap, 5)],
    ids=["before a line", "before a checkpoint", "before an evaluation", "a copy in its place"],
)
def test_a_folder_that_is_moved_stops_the_run_and_goes_on_in_its_new_place(
    tmp_path: Path, at: int, act: Callable[[Path], None], log_every: int
) -> None:
    plan = small_plan(PLAIN, log_every=log_every)
    whole = run_small(tmp_path / "whole", plan)
    out = tmp_path / "out"
    mover = Act(at, lambda: act(next(out.iterdir())))
    with pytest.raises(RunFolderError, match=r"was moved, replaced or deleted while the run was training"):
        train_plan(plan, out=out, log=RunLog, listeners=(mover,))
    places = {p.name for p in out.iterdir()}
    assert len(places) == (2 if act is swap else 1), "no folder was made anew"
    same(whole, run_small(out, plan, resume=out / "elsewhere"))
    assert last_tensors(out / "elsewhere") == last_tensors(whole.folder)


def test_a_folder_that_is_deleted_stops_the_run_and_is_not_made_anew(tmp_path: Path) -> None:
    reporter = Act(5, lambda: shutil.rmtree(next(tmp_path.iterdir())))
    with pytest.raises(
        RunFolderError, match=r"deleted while the run was training.*summary.json was not written"
    ):
        train_plan(small_plan(PLAIN, log_every=1), out=tmp_path, log=RunLog, listeners=(reporter,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_ends_the_run_in_words(tmp_path: Path, error: Exception) -> None:
    def fail() -> None:
        raise error

    class Hungry(Restless):
        def workload(self, model: Any, **where: Any) -> Any:
            base = super().workload(model, **where)
            base.metrics = fail  # type: ignore[method-assign]
            return base

    with pytest.raises(
        OutOfMemory, match=r"out of memory.*7 steps were taken; the newest whole checkpoint is .*-0{7}6"
    ):
        run_small(tmp_path, small_plan(PLAIN, task=Hungry()))
    (folder,) = tmp_path.iterdir()
    assert RunDir(folder).summary["exit_code"] == 1
