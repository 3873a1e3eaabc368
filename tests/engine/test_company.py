"""Several processes train one run by ``curvlab train``: as one does, and all or none of them go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import curvlab
from curvlab.cli.resuming import continued
from curvlab.config import build
from curvlab.engine.company import Company
from curvlab.engine.run import train_plan
from curvlab.objectives.ranks import PlannedRanks
from curvlab.reporting.runlog import RunLog
from tests.engine.test_ranks import environment

#: 64-bit, and labels that are not drawn: then it matters to nobody who has which examples
CONFIG = """
[task]
use = "digits"
[method]
use = "kfac"
labels = "exact"
[precision]
use = "float64"
[run]
name = "together"
steps = 9
eval_every = 3
checkpoint_every = 3
log_every = 1
threads = 1
"""
#: what makes it so
ALWAYS = {"CURVLAB_TIMEOUT": "60"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def begun(*arguments: object) -> subprocess.Popen[str]:
    """The command line, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "curvlab", *map(str, arguments)],
        env={**environment(), **ALWAYS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(*arguments: object) -> None:
    process = begun(*arguments)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said


def goes_on(folder: Path, steps: int) -> None:
    """In this process."""
    plan = build(continued(folder, [f"run.steps={steps}"]))
    train_plan(plan, out=folder.parent, log=RunLog, resume_from=folder)


def folder_in(out: Path) -> Path:
    (found,) = out.iterdir()
    return found


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def checkpoint(folder: Path) -> dict[str, Any]:
    return load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors")


@pytest.mark.parametrize("then", [1, pytest.param(3, marks=pytest.mark.grid)])
def test_a_run_of_two_then_some_then_one_process_is_that_of_one(
    config: Path, tmp_path: Path, then: int
) -> None:
    one = curvlab.train(config, out=tmp_path / "one").folder
    done("train", config, "--out", tmp_path / "some", "--set", "run.steps=3", "--processes", 2)
    folder = folder_in(tmp_path / "some")
    assert json.loads((folder / "manifest.json").read_text())["processes"] == 2
    if then > 1:
        done("resume", folder, "--set", "run.steps=6", "--processes", then)
    goes_on(folder, 9)
    assert losses(folder) == pytest.approx(losses(one), rel=1e-9)
    mine, whole = checkpoint(folder), checkpoint(one)
    compared = {name for name in whole if not name.startswith("random/") and whole[name].is_floating_point()}
    assert compared <= mine.keys()
    for name in compared:
        assert mine[name].shape == whole[name].shape
        assert float((mine[name] - whole[name]).norm()) <= 1e-7 * max(1.0, float(whole[name].norm())), name


def children_of(process: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def in_the_middle(config: Path, out: Path) -> tuple[subprocess.Popen[str], Path]:
    """A long run of two processes that has a checkpoint."""
    process = begun("train", config, "--out", out, "--set", "run.steps=100000", "--processes", 2)
    until = time.monotonic() + 120
    while not list(out.glob("*/checkpoints/step-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)
    return process, folder_in(out)


def test_the_death_of_one_process_ends_the_others_and_the_run_goes_on_from_its_checkpoint(
    config: Path, tmp_path: Path
) -> None:
    process, folder = in_the_middle(config, tmp_path / "out")
    ranks = [p for p in children_of(process.pid) if b"curvlab" in Path(f"/proc/{p}/cmdline").read_bytes()]
    victim = next(p for p in ranks if b"\0RANK=1\0" in Path(f"/proc/{p}/environ").read_bytes())
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 1 was ended by SIGKILL" in said
    assert "Traceback" not in said
    steps = int(re.findall(r"\d+", sorted((folder / "checkpoints").glob("step-*"))[-1].name)[0])
    goes_on(folder, steps + 3)
    assert json.loads((folder / "summary.json").read_text())["exit_reason"] == "finished"


def test_a_signal_stops_all_processes_with_a_checkpoint(config: Path, tmp_path: Path) -> None:
    process, folder = in_the_middle(config, tmp_path / "out")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert said.count("stopped by SIGTERM") == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exit_reason"] == "sigterm"
    assert summary["checkpoint"] == f"checkpoints/step-{summary['steps']:08d}"


def test_faults_are_told_once_and_before_any_process_starts(config: Path, tmp_path: Path) -> None:
    process = begun("train", config, "--processes", 2, "--set", "method.lr=-1", "--out", tmp_path / "out")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert said.count("must not be negative") == 1
    assert not (tmp_path / "out").exists()


def test_random_layers_of_every_process_draw_their_own_numbers() -> None:
    """After a resume too, in a process that was there and in one that was not."""
    saved = {"cpu": torch.tensor([0]), "cpu@1": torch.tensor([1])}
    of = [Company(PlannedRanks(None, 3, rank)).own_random_states(saved) for rank in range(3)]
    assert [{n: int(t) for n, t in found.items()} for found in of] == [{"cpu": 0}, {"cpu": 1}, {}]
    drawn = []
    for rank in range(3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            Company(PlannedRanks(None, 3, rank)).draw_apart(5)
            drawn.append(torch.rand(4))
    torch.manual_seed(5)
    assert torch.equal(drawn[0], torch.rand(4))
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 3
