"""A precision per phase of a run: converted at its time, and the same after a resume."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import curvlab
from curvlab.config.layers import load
from curvlab.config.plan import build
from curvlab.engine import checkpoint
from curvlab.engine.folder import CHECKPOINTS
from curvlab.engine.rebuilt import evaluate
from curvlab.engine.run import train_plan
from curvlab.errors import ConfigError, Stopped
from curvlab.reporting.rundir import RunDir
from curvlab.reporting.runlog import RunLog
from tests.engine.small_run import StopAt

STEPS = 20
MASTER = {"use": "bfloat16", "parameter_write": "master"}


def config(method: str, phases: list[Any], until: list[float], **run: Any) -> dict[str, Any]:
    return {
        "run": {"steps": STEPS, "log_every": 1, "checkpoint_every": 5, "keep": 99, "seed": 0, **run},
        "task": {"use": "digits", "batch_size": 64},
        "method": {"use": method},
        "precision": {"use": "phases", "phases": phases, "until": until},
    }


def final(folder: Path) -> dict[str, torch.Tensor]:
    found = checkpoint.load(folder / CHECKPOINTS / f"step-{STEPS:08d}")
    return dict(found.tensors)


@pytest.mark.parametrize("at", [3, 8, 14])
@pytest.mark.parametrize("method", ["adamw", "singd", "ekfac", "hf-gn"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(method: str, at: int, tmp_path: Path) -> None:
    plan = build(load(data=config(method, [MASTER, "mixed-float16", "float32"], [0.4, 0.7])))
    whole = train_plan(plan, out=tmp_path / "whole", log=RunLog)
    with pytest.raises(Stopped):
        train_plan(plan, out=tmp_path / "cut", log=RunLog, listeners=(StopAt(at, signal.SIGTERM),))
    (folder,) = (tmp_path / "cut").iterdir()
    train_plan(plan, out=tmp_path / "cut", log=RunLog, resume_from=folder)
    mine, theirs = final(whole.folder), final(folder)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    changes = [e for e in RunDir(folder).events() if e["name"] == "precision-changed"]
    assert [(e["step"], e["detail"]["to"]) for e in changes] == [
        (8, "float32, passes in float16"),
        (14, "float32"),
    ]
    assert evaluate(plan, folder)["metrics"] == whole.summary["metrics"]


def test_every_state_takes_the_dtypes_of_the_phase(tmp_path: Path) -> None:
    plan = build(load(data=config("singd", ["bfloat16", "float32"], [0.5])))
    run = train_plan(plan, out=tmp_path, log=RunLog)
    before, after = (checkpoint.load(run.folder / CHECKPOINTS / f"step-{k:08d}").tensors for k in (5, STEPS))
    floating = [n for n, t in after.items() if t.is_floating_point()]
    assert {before[n].dtype for n in floating} == {torch.bfloat16}
    assert {after[n].dtype for n in floating} == {torch.float32}


def test_a_master_becomes_the_parameters_where_they_get_as_wide(tmp_path: Path) -> None:
    """The run of a master is that of float32 but for passes: at the change nothing is rounded."""
    plan = build(load(data=config("sgd", [MASTER, "float32"], [0.5], checkpoint_every=10)))
    run = train_plan(plan, out=tmp_path, log=RunLog)
    tensors = checkpoint.load(run.folder / CHECKPOINTS / "step-00000010").tensors
    weights = [t for n, t in tensors.items() if n.startswith("model/") and t.dim() == 2]
    assert all(t.dtype == torch.float32 for t in weights)
    assert not any(torch.equal(t, t.to(torch.bfloat16).float()) for t in weights)


@pytest.mark.parametrize(
    ("phases", "until", "words"),
    [
        (["float32"], [], "until has 0 fractions; 1 phases need 1"),
        (["float32", "float64"], [0.7, 0.8], "until has 2 fractions; 2 phases need 1"),
        (["float32", "float64"], [1.0], r"until = \[1.0\] must rise, between 0 and 1"),
        (["float32", "float64", "float32"], [0.6, 0.5], "must rise"),
    ],
)
def test_phases_that_make_no_sense_are_refused(phases: list[str], until: list[float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(load(data=config("sgd", phases, until)))


def test_a_loop_of_ones_own_has_no_budget() -> None:
    precision = {"use": "phases", "phases": ["mixed-bfloat16", "float32"], "until": [0.5]}
    with pytest.raises(ConfigError, match="goes by the budget of a run"):
        curvlab.optimizer("sgd", nn.Linear(2, 2), precision=precision)
