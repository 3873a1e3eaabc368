"""``curvlab export --weights``: trained and averaged weights as files that torch's models load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import curvlab
from curvlab.cli.app import app
from curvlab.engine.run import Run


def config(**more: object) -> dict[str, object]:
    run = {"steps": 6, "name": "one"}
    return {"task": {"use": "digits"}, "method": {"use": "adamw"}, "run": run, "report": "quiet", **more}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Run:
    average = {"use": "ema", "decay": 0.5}
    return curvlab.train(config(average=average), out=tmp_path_factory.mktemp("averaged"))


def export(run: Run, *options: object) -> Result:
    return CliRunner().invoke(app, ["export", str(run.folder), *map(str, options)])


def test_a_file_of_averaged_weights_loads_into_the_model_and_has_its_metrics(
    averaged: Run, tmp_path: Path
) -> None:
    done = export(averaged, "--weights", tmp_path / "w.safetensors", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["weights"] == "averaged"
    with averaged.optimizer.averaged():
        expected = {n: t.clone() for n, t in averaged.model.state_dict().items()}
    found = load_file(tmp_path / "w.safetensors")
    averaged.model.load_state_dict(found)
    assert averaged.workload.metrics()["val_loss"] == averaged.summary["metrics"]["val_loss"]
    assert all(torch.equal(t, found[n]) for n, t in expected.items())


def test_both_are_there_by_their_names(averaged: Run, tmp_path: Path) -> None:
    both = tmp_path / "both.safetensors"
    assert export(averaged, "--weights", both, "--which", "both").exit_code == 0
    assert export(averaged, "--weights", tmp_path / "t", "--which", "trained").exit_code == 0
    found, trained = load_file(both), load_file(tmp_path / "t")
    names = set(averaged.model.state_dict())
    assert set(found) == {f"{which}/{n}" for which in ("averaged", "trained") for n in names}
    assert all(torch.equal(found[f"trained/{n}"], t) for n, t in trained.items())
    assert not any(torch.equal(found[f"averaged/{n}"], t) for n, t in trained.items())
    with safe_open(both, "pt") as file:
        assert file.metadata()["format"] == "curvlab-weights-1"


def test_averaged_weights_of_a_run_without_an_average_are_refused(tmp_path: Path) -> None:
    run = curvlab.train(config(), out=tmp_path)
    done = export(run, "--weights", tmp_path / "w", "--which", "averaged")
    assert done.exit_code == 2
    assert "keeps no average of the weights" in done.stderr
    assert not (tmp_path / "w").exists()
    done = export(run, "--weights", tmp_path / "w")
    assert "trained weights, 6 tensors" in done.stdout
    assert set(load_file(tmp_path / "w")) == set(run.model.state_dict())


def test_without_a_file_there_is_nothing_to_do(averaged: Run, tmp_path: Path) -> None:
    assert "give --factors FILE, --weights FILE, or both" in export(averaged).stderr
    assert export(averaged).exit_code == 2
    refused = export(averaged, "--factors", tmp_path / "f", "--which", "both")
    assert "--which chooses weights" in refused.stderr
