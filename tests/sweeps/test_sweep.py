"""A sweep is its runs: those that `curvlab train` makes, found again however the sweep was stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli
from typer.testing import CliRunner, Result

import curvlab
from curvlab.cli.app import app
from curvlab.comparing.outline import runs_below
from curvlab.config import load
from curvlab.errors import ConfigError
from curvlab.reporting.rundir import RunDir
from curvlab.sweeps.sweep import Sweep

BASE = """
[run]
steps = 8
eval_every = 2
checkpoint_every = 1
threads = 1

[task]
use = "quadratic"
dimension = 6

[method]
use = "sgd"
"""
GRID = f"""{BASE}
[sweep.over]
method.lr = [0.1, 0.3, 1e6]
"method.momentum" = [0.0, 0.5]
"""
OPTUNA = f"""{BASE}
[sweep]
search = "optuna"
trials = 6
sampler = {{ use = "TPESampler", n_startup_trials = 2 }}
pruner = {{ use = "MedianPruner", n_startup_trials = 2 }}

[sweep.over]
method.lr = {{ low = 1e-3, high = 1e6, log = true }}
method.momentum = [0.0, 0.5]
"""


def sweep(*arguments: object) -> Result:
    done = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def table(*arguments: object) -> Any:
    """The trials of a sweep as a document, without the places of their runs."""
    done = sweep(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    trials: list[dict[str, Any]] = json.loads(done.stdout)["trials"]
    return [{key: value for key, value in one.items() if key not in ("run", "message")} for one in trials]


def killed(trials: int, file: Path, folder: Path, *arguments: str) -> None:
    """A sweep in a process of its own that is killed at a random moment after so many trials have begun."""
    command = [sys.executable, "-m", "curvlab", "sweep", str(file), "--out", str(folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(list(folder.glob("*-0*"))) < trials:
            assert process.poll() is None, "the sweep ended before it was killed"
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text(GRID)
    (tmp_path / "tpe.toml").write_text(OPTUNA)
    return tmp_path


def test_a_trial_of_a_grid_is_the_run_that_train_makes_and_the_best_file_trains_it_again(there: Path) -> None:
    done = sweep("grid.toml")
    assert done.exit_code == 0
    head, *rows = done.stdout.split("\n\n")[0].splitlines()
    assert head.split() == [
        "trial",
        "method.lr",
        "method.momentum",
        "state",
        "best",
        "val_loss",
        "at",
        "step",
    ]
    assert sorted(row.split()[0] for row in rows) == [f"{k:04}" for k in range(6)]
    assert [row.split()[3] for row in rows] == ["finished"] * 4 + ["diverged"] * 2
    losses = [float(row.split()[4]) for row in rows[:4]]
    assert losses == sorted(losses)
    first = rows[0].split()[0]
    (run,) = there.glob(f"sweeps/grid/grid-{first}-*")
    again = curvlab.train(str(there / "sweeps" / "grid" / "best.toml"), progress=False)
    value = [line["val_loss"] for line in RunDir(run).evaluations()]
    assert [line["val_loss"] for line in again.metrics()] == value
    assert len(value) == 4
    compared = CliRunner().invoke(app, ["compare", "sweeps/grid", "--json"])
    assert len(json.loads(compared.stdout)["tasks"][0]["configurations"]) == 6


def test_an_optuna_sweep_killed_at_a_random_moment_and_run_again_gives_the_same_table(there: Path) -> None:
    pytest.importorskip("optuna")
    expected = table("tpe.toml", "--out", "whole")
    states = {one["state"] for one in expected}
    assert "stopped" in states or "diverged" in states
    assert len(expected) == 6
    killed(random.randint(1, 5), there / "tpe.toml", there / "torn")
    assert table("tpe.toml", "--out", "torn") == expected
    more = table("tpe.toml", "--out", "torn", "--set", "sweep.trials=7")
    assert len(more) == 7
    assert all(one in more for one in expected)


def test_processes_make_the_runs_of_one_process_and_end_when_the_sweep_is_killed(there: Path) -> None:
    (there / "steps.toml").write_text(GRID.split("method.lr")[0] + "run.steps = [4, 5, 1000000, 1000001]\n")
    (there / "few.toml").write_text(GRID.split("method.lr")[0] + "run.steps = [4, 5]\n")
    killed(4, there / "steps.toml", there / "many", "--jobs", "2")
    patience = time.monotonic() + 60
    while any(RunDir(run).in_use() for run in runs_below(there / "many")):
        assert time.monotonic() < patience, "a worker trains on without the process that started it"
        time.sleep(0.1)
    table("few.toml", "--out", "one")
    for number in range(2):
        runs = [RunDir(next(there.glob(f"{folder}/*-000{number}-*"))) for folder in ("many", "one")]
        losses = [[line["val_loss"] for line in run.evaluations()] for run in runs]
        assert losses[0] == losses[1]
        assert runs[0].finished
    endless = [RunDir(run).summary["exit_reason"] for run in sorted(runs_below(there / "many"))[2:]]
    assert endless == ["sigterm"] * 2  # each with a checkpoint


@pytest.mark.skipif(os.name == "nt", reason="submitit runs on POSIX systems")
def test_submitit_carries_out_trials_and_its_options_are_checked(there: Path) -> None:
    pytest.importorskip("submitit")
    options = '[executor]\nuse = "submitit"\ncluster = "local"\ntimeout_min = 2\n'
    text = f"{BASE}\n{options}\n[sweep.over]\nmethod.lr = [0.1]\n"
    (there / "one.toml").write_text(text)
    ((one),) = table("one.toml")
    assert one["state"] == "finished"
    assert list(there.glob("sweeps/one/submitit/*"))
    (there / "one.toml").write_text(text.replace("timeout_min", "timeout_hours"))
    refused = sweep("one.toml", "--out", "other")
    assert refused.exit_code == 2
    assert "timeout_hours" in refused.stderr


def test_a_folder_is_continued_by_its_own_sweep_alone(there: Path) -> None:
    sweep("grid.toml", "--set", "sweep.over.method.lr=[0.1]")
    done = sweep("grid.toml", "--set", "sweep.over.method.lr=[0.2]")
    assert done.exit_code == 2
    assert "sweep.over.method.lr was [0.1] and is [0.2]; choose another folder with --out" in done.stderr


def test_all_faults_are_found_before_the_first_run_at_their_lines(there: Path) -> None:
    text = GRID.replace("0.3", "-0.3").replace("0.5", "1.5").replace("dimension = 6", "dimension = 0")
    (there / "grid.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Sweep.of(load("grid.toml"), "grid")
    lines = text.splitlines()
    found = {
        (fault.path, lines[fault.line - 1].split(" =")[0]) for fault in caught.value.faults if fault.line
    }
    assert found == {
        ("task.dimension", "dimension"),
        ("sweep.over.method.lr.1", "method.lr"),
        ("sweep.over.method.momentum.1", '"method.momentum"'),
    }
    assert sweep("grid.toml").exit_code == 3
    assert Sweep.of(load(data=tomli.loads(GRID)), "my sweep").name == "my-sweep"
    assert not (there / "sweeps").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("sweep.trials=3",), "a grid has as many trials as combinations"),
        (("sweep.search=halton",), "the number of trials of halton is missing"),
        (("sweep.search=random",), "sweep.search"),
        (("sweep.sampler=TPESampler",), 'sampler is for search = "optuna"'),
        (("sweep.over.method.weight_decay={low=0.1, high=0.2}",), "a grid needs to know how many values"),
        (("sweep.search=optuna", "sweep.trials=2", "sweep.sampler=TPESample"), "unknown sampler TPESample"),
        (
            ("sweep.search=optuna", "sweep.trials=2", "sweep.pruner={use='HyperbandPruner', a=1}"),
            "cannot be made",
        ),
        (("run.name=3",), "expected a string, got 3"),
        (
            ("sweep.over.method.weight_decay={low=0.0, high=0.2, points=1667}",),
            "the grid has 10002 combinations",
        ),
        (("executor.use=slurm",), "unknown executor"),
        (("executor.jobs=0",), "expected a whole number from 1 to 1024"),
        (("executor.cluster=slurm",), "the executor processes has no setting cluster"),
    ],
)
def test_a_wrong_search_is_refused_in_words(there: Path, change: tuple[str, ...], said: str) -> None:
    if "sweep.search=optuna" in change:
        pytest.importorskip("optuna")
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        Sweep.of(load("grid.toml", change), "grid")


def test_a_run_with_the_table_of_a_sweep_names_the_command_for_it(there: Path) -> None:
    done = CliRunner().invoke(app, ["config", "check", "grid.toml"])
    assert done.exit_code == 3
    assert "`curvlab sweep` reads it" in done.stderr
