"""Whole runs: folders, the same bits again, and resuming bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from curvlab.engine.rebuilt import evaluate
from curvlab.engine.run import train_plan
from curvlab.errors import CheckpointError, CurvlabError, DataError, UsageError
from curvlab.protocols.report import Reporter, StepRecord
from curvlab.reporting.rundir import RunDir
from curvlab.reporting.runlog import RunLog
from tests.engine.small_run import (
    CURVED,
    PLAIN,
    Restless,
    last_tensors,
    parameters,
    run_small,
    same,
    small_plan,
    stopped_at,
)

HERE = Path(__file__).parent

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def program(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def environment() -> dict[str, str]:
    root = str(HERE.parent.parent)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The metrics lines without the clock."""
    return [
        {k: v for k, v in line.items() if k != "seconds"} for line in RunDir(folder).lines("metrics.jsonl")
    ]


# the folder


def test_a_run_leaves_what_the_contract_lists_readable_with_the_standard_library(tmp_path: Path) -> None:
    run = run_small(tmp_path)
    names = {p.name for p in run.folder.iterdir()}
    assert names == {
        "config.toml",
        "resolved.toml",
        "manifest.json",
        "metrics.jsonl",
        "events.jsonl",
        "checkpoints",
        "summary.json",
    }
    assert {p.name for p in (run.folder / "checkpoints").iterdir()} == {
        "latest",
        "step-00000027",
        "step-00000030",
    }
    manifest = json.loads((run.folder / "manifest.json").read_text())
    asked = {"curvlab", "torch", "plugins", "device", "threads", "seed", "argv", "git", "coverage", "parts"}
    assert asked <= set(manifest)
    assert manifest["threads"] == torch.get_num_threads()
    assert [row["parameter"] for row in manifest["coverage"]] == ["0.weight", "0.bias", "4.weight", "4.bias"]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    always = {"kind", "step", "epoch", "examples", "seconds", "loss", "lr", "damping"}
    sometimes = {
        "cg_iterations",
        "products",
        "product_examples",
        "reduction_ratio",
        "accepted",
        "gradient_size",
        "curvature_size",
    }
    for line in lines:
        if line["kind"] == "step":
            assert always <= set(line) <= always | sometimes
        else:
            assert set(line) == {"kind", "step", "seconds", "val_loss"}
    assert json.loads((run.folder / "summary.json").read_text()) == run.summary
    assert (run.folder / "config.toml").read_text() == "# small\n"


def test_the_summary_says_how_it_went(tmp_path: Path) -> None:
    run = run_small(tmp_path)
    assert repr(run).startswith(f"Run('{run.folder}', finished, steps={run.summary['steps']}, val_loss=")
    assert len(repr(run)) < 120 + len(str(run.folder))
    summary, last = run.summary, RunDir(run.folder).evaluations()[-1]
    assert (summary["exit_reason"], summary["exit_code"], summary["steps"]) == ("finished", 0, 30)
    assert summary["metrics"] == {"val_loss": last["val_loss"]}
    assert summary["metrics_step"] == 30
    assert summary["examples"] == 30 * 16
    best = min(RunDir(run.folder).evaluations(), key=lambda line: line["val_loss"])
    assert summary["best"] == {"metric": "val_loss", "value": best["val_loss"], "step": best["step"]}
    assert (run.folder / summary["checkpoint"]).is_dir()


def test_no_folder_is_used_twice(tmp_path: Path) -> None:
    plan = small_plan(PLAIN, steps=1)
    folders = {run_small(tmp_path, plan).folder for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.name.startswith("run-") for folder in folders)


def test_a_faulty_task_leaves_no_folder(tmp_path: Path) -> None:
    class Missing(Restless):
        def workload(self, model: Any, **where: Any) -> Any:
            raise DataError("the files are not there")

    with pytest.raises(DataError):
        run_small(tmp_path / "runs", small_plan(task=Missing()))
    assert not (tmp_path / "runs").exists()


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder, _ = stopped_at(tmp_path, 4, signal.SIGTERM)
    errors: list[CurvlabError] = []

    class Intruder(Reporter):
        def stepped(self, record: StepRecord) -> None:
            if record.step == 8:
                with pytest.raises(UsageError, match="in use") as caught:
                    run_small(tmp_path, small_plan(log_every=1), resume=folder)
                errors.append(caught.value)

    plan = small_plan(log_every=1)
    train_plan(plan, out=tmp_path, log=RunLog, resume_from=folder, listeners=(Intruder(),))
    assert len(errors) == 1
    assert [line["step"] for line in RunDir(folder).steps()] == list(range(1, 31))


# determinism


def test_the_same_plan_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    a, b, c = (run_small(tmp_path, small_plan(seed=seed)) for seed in (0, 0, 1))
    same(a, b)
    assert not torch.equal(parameters(a)["0.weight"], parameters(c)["0.weight"])


def test_the_callers_random_numbers_and_threads_are_left_alone(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run_small(tmp_path, small_plan(steps=2, threads=2))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert RunDir(max(tmp_path.iterdir())).manifest["threads"] == 2


# resuming


@pytest.mark.parametrize("method", [CURVED, PLAIN], ids=["curved", "plain"])
@pytest.mark.parametrize("step", [1, 7, 12, 29])
def test_a_run_resumed_from_any_step_gives_the_bits_of_one_never_stopped(
    tmp_path: Path, method: Any, step: int
) -> None:
    plan = small_plan(method, log_every=1)
    whole = run_small(tmp_path / "whole", plan)
    folder, _ = stopped_at(tmp_path / "stopped", step, signal.SIGTERM, plan=plan)
    resumed = run_small(tmp_path, plan, resume=folder)
    same(whole, resumed)
    assert last_tensors(whole.folder) == last_tensors(folder)
    assert numbers(folder) == numbers(whole.folder)
    assert resumed.summary["best"] == whole.summary["best"]


def test_a_larger_budget_goes_on_as_if_it_had_been_so_from_the_start(tmp_path: Path) -> None:
    whole = run_small(tmp_path / "whole", small_plan())
    short = run_small(tmp_path / "short", small_plan(steps=13))
    longer = run_small(tmp_path, small_plan(), resume=short.folder)
    same(whole, longer)
    assert longer.folder == short.folder
    assert "steps = 30" in (short.folder / "resolved.toml").read_text()


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = run_small(tmp_path, small_plan(steps=6))
    before = {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()}
    again = run_small(tmp_path, small_plan(steps=6), resume=first.folder)
    assert again.was_over
    assert not first.was_over
    assert again.summary == first.summary
    same(first, again)
    assert {p: p.read_bytes() for p in first.folder.rglob("*") if p.is_file()} == before


def test_steps_after_the_checkpoint_are_superseded_and_each_step_stands_once(tmp_path: Path) -> None:
    plan = small_plan(log_every=1, checkpoint_every=5, eval_every=2)
    whole = run_small(tmp_path / "whole", plan)
    folder, _ = stopped_at(tmp_path / "stopped", 13, signal.SIGTERM, plan=plan)
    # as if it had been killed: the checkpoint of the signal is gone, lines of later steps are there
    (folder / "checkpoints" / "step-00000013" / "state.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 14, "lo')
    run_small(tmp_path, plan, resume=folder)
    assert numbers(folder) == numbers(whole.folder)
    resumed = [e for e in RunDir(folder).events() if e["name"] == "resumed"]
    assert [(e["step"], e["detail"]["superseded_lines"]) for e in resumed] == [(10, 3 + 1 + 1)]
    damaged = [e for e in RunDir(folder).events() if e["name"] == "damaged-checkpoint"]
    assert [e["detail"]["fault"] for e in damaged] == ["step-00000013: state.json is missing"]


def test_a_run_killed_before_its_first_checkpoint_starts_again_in_its_folder(tmp_path: Path) -> None:
    whole = run_small(tmp_path / "whole")
    folder, _ = stopped_at(tmp_path / "stopped", 1, signal.SIGTERM, plan=small_plan(log_every=1))
    for path in (folder / "checkpoints").glob("step-*"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    same(whole, run_small(tmp_path, small_plan(), resume=folder))


def test_a_checkpoint_of_another_method_or_model_is_refused(tmp_path: Path) -> None:
    folder, _ = stopped_at(tmp_path, 4, signal.SIGTERM)
    with pytest.raises(CheckpointError, match=r'written by method "curved".*has method "other"'):
        run_small(tmp_path, replace(small_plan(), method_name="other"), resume=folder)

    class Wider(Restless):
        def model(self) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Linear(9, 2))

    with pytest.raises(CheckpointError, match="written with another model"):
        run_small(tmp_path, small_plan(task=Wider()), resume=folder)


def test_a_resumed_run_takes_the_threads_it_has_had(tmp_path: Path) -> None:
    folder, _ = stopped_at(tmp_path, 4, signal.SIGTERM, plan=small_plan(threads=2, log_every=1))
    seen: list[int] = []

    class Look(Reporter):
        def stepped(self, record: StepRecord) -> None:
            seen.append(torch.get_num_threads())

    train_plan(small_plan(log_every=5), out=tmp_path, log=RunLog, resume_from=folder, listeners=(Look(),))
    assert set(seen) == {2}


def test_ten_runs_killed_at_random_moments_end_as_the_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL twice in each of ten runs; then every byte of the last checkpoint is the peaceful run's."""
    done = subprocess.run(
        program("kill_ten_times.py", tmp_path, 20261121),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) == 10
    for outcome in outcomes:
        assert outcome["status"] == 0, outcome
        assert outcome["same_tensors"], outcome
        assert outcome["same_lines"], outcome
    resumed = [step for outcome in outcomes for step in outcome["resumed_at"]]
    assert len(resumed) >= 5, "most kills must have landed after the run had begun"


# evaluating


def test_evaluating_again_gives_the_runs_own_last_line_bit_for_bit(tmp_path: Path) -> None:
    run = run_small(tmp_path)
    line = RunDir(run.folder).evaluations()[-1]
    found = evaluate(small_plan(), run.folder)
    assert found == {
        "run": str(run.folder),
        "step": line["step"],
        "checkpoint": "step-00000030",
        "metrics": {"val_loss": line["val_loss"]},
        "damaged": [],
    }


def test_there_is_nothing_to_evaluate_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        evaluate(small_plan(), tmp_path)
