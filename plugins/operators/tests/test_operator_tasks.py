"""The tasks of operators: data in files, and that a short run learns."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import curvlab
from curvlab.config import build, load
from curvlab.engine.run import train_plan
from curvlab.errors import ConfigError, DataError
from curvlab.reporting.runlog import RunLog
from curvlab_operators.burgers_data import BurgersData
from curvlab_operators.burgers_flow import BurgersFlow
from curvlab_operators.darcy_data import DarcyData
from curvlab_operators.darcy_flow import DarcyFlow

SMALL: dict[str, Any] = {"grid": 11, "width": 4, "modes": 3, "layers": 2, "size": 12, "validation_size": 4}
TASKS: dict[str, Any] = {"darcy-flow": DarcyFlow, "burgers-flow": BurgersFlow}
DATA: dict[str, Any] = {"darcy-flow": DarcyData, "burgers-flow": BurgersData}


@pytest.mark.parametrize("name", TASKS)
def test_a_short_run_learns(name: str, tmp_path: Path) -> None:
    run = curvlab.train(
        {
            "task": {"use": name, **SMALL, "batch_size": 6},
            "method": {"use": "adamw", "lr": 1e-2},
            "run": {"steps": 40, "seed": 0},
        },
        out=tmp_path,
    )
    assert run.summary["metrics"]["val_l2"] < 0.5


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_run_of_complex_weights_resumes_bit_for_bit(precision: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "task": {"use": "darcy-flow", **SMALL, "batch_size": 6},
        "method": {"use": "kfac", "lr": 1e-2},
        "precision": {"use": precision},
        "run": {"steps": 6, "seed": 0, "checkpoint_every": 3},
    }
    whole = curvlab.train(config, out=tmp_path)
    short = curvlab.train({**config, "run": {**config["run"], "steps": 3}}, out=tmp_path)
    on = train_plan(build(load(data=config)), out=tmp_path, log=RunLog, resume_from=short.folder)
    for p, q in zip(whole.model.parameters(), on.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_gives_one_problem_and_loading_draws_nothing(name: str) -> None:
    task = TASKS[name](**SMALL)
    assert pickle.loads(pickle.dumps(task)) == task
    before = torch.get_rng_state()
    first, again = task.data().made(), task.data().made()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.outputs, again.outputs)
    other = TASKS[name](**SMALL, data_seed=1).data().made()
    assert not torch.equal(first.inputs, other.inputs)


@pytest.mark.parametrize("name", TASKS)
def test_prepared_data_are_those_that_the_task_makes(name: str, tmp_path: Path) -> None:
    kinds = {k: v for k, v in SMALL.items() if k in ("grid", "size", "validation_size")}
    data, told = DATA[name](**kinds), []
    data.run(tmp_path / "a", told.append)
    data.run(tmp_path / "a", told.append)
    assert told[1].endswith("holds these data already")
    task = TASKS[name](**SMALL, root=str(tmp_path / "a"))
    made, read = task.data().made(), task.data().pairs(task.root)
    assert torch.equal(made.inputs, read.inputs)
    assert torch.equal(made.outputs, read.outputs)
    assert made.held_out == read.held_out == 4


def test_other_data_damaged_data_and_no_data_are_refused(tmp_path: Path) -> None:
    data = DarcyData(grid=8, size=2, validation_size=1)
    with pytest.raises(DataError, match="does not exist; `curvlab tasks prepare darcy-flow --to DIR`"):
        data.pairs(str(tmp_path))
    data.run(tmp_path, print)
    with pytest.raises(DataError, match="holds other data: grid is 8, expected 9"):
        DarcyData(grid=9, size=2, validation_size=1).pairs(str(tmp_path))
    with pytest.raises(DataError, match="holds other data"):
        DarcyData(grid=9, size=2, validation_size=1).run(tmp_path, print)
    file = tmp_path / "darcy-flow.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match="cannot be read"):
        data.pairs(str(tmp_path))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "other").touch()
    with pytest.raises(DataError, match="is no empty folder"):
        data.run(tmp_path / "b", print)


def test_permeabilities_are_two_phases_or_smooth() -> None:
    two, smooth = (
        DarcyData(grid=16, size=4, validation_size=2, coefficient=kind).made().inputs
        for kind in ("two-phase", "smooth")  # type: ignore[arg-type]
    )
    assert set(two.unique().tolist()) == {3.0, 12.0}
    assert len(smooth.unique()) == smooth.numel()


def test_bad_settings_are_refused_by_name() -> None:
    for settings, says in (
        ({"grid": 10}, "grid = 10 is too coarse for modes = 6"),
        ({"width": 0}, "width = 0"),
        ({"high": -1.0}, "high = -1.0"),
    ):
        with pytest.raises(ConfigError, match=says):
            DarcyFlow(**settings)  # type: ignore[arg-type]
