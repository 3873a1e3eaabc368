"""The first-party methods on real data: what holds of a run holds for each of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curvlab.cli.app import app
from curvlab.reporting.rundir import RunDir

PLUGINS = Path(__file__).parents[2] / "plugins"
METHODS = ("sgd", "adamw", "muon", "kfac", "ekfac", "foof", "cg-fac")

CONFIG = """
[run]
epochs = 2
log_every = 1

[task]
use = "digits"
hidden = [16]
"""


@pytest.fixture(autouse=True)
def _first_party(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plugins of this repository and no others, whether or not they are installed."""
    names = ("firstorder", "structures", "kfac")
    for name in names:
        metadata = tmp_path / "site" / f"curvlab_{name}-0.1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: curvlab-{name}\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text(f"[curvlab]\n{name} = curvlab_{name}\n")
        monkeypatch.syspath_prepend(PLUGINS / name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("CURVLAB_PLUGINS", ",".join(names))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)


def curvlab(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def trained(method: str, *arguments: object) -> Path:
    said = curvlab("train", "config.toml", "--set", f"method={method}", *arguments)
    return Path(said.splitlines()[-1])


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_has_every_byte_of_one_that_was_never_stopped(method: str) -> None:
    whole, stopped = trained(method), trained(method, "--set", "run.epochs=0.9")
    assert RunDir(stopped).summary["steps"] == 11
    curvlab("resume", stopped, "--set", "run.epochs=2")
    last = "checkpoints/step-00000023/tensors.safetensors"
    assert (whole / last).read_bytes() == (stopped / last).read_bytes()
    losses = [[line["loss"] for line in RunDir(folder).steps()] for folder in (whole, stopped)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 23


@pytest.mark.parametrize("method", METHODS)
def test_a_dry_run_tells_the_runs_own_coverage_and_bytes(method: str) -> None:
    told = json.loads(curvlab("train", "config.toml", "--set", f"method={method}", "--dry-run", "--json"))
    manifest = RunDir(trained(method, "--set", "run.epochs=0.01")).manifest
    assert told["coverage"] == manifest["coverage"]
    assert told["state_bytes"] == manifest["state_bytes"]
    assert told["parameters"] == manifest["parameters"]


@pytest.mark.parametrize("method", METHODS)
def test_eval_gives_the_last_evaluation_bit_for_bit(method: str) -> None:
    folder = trained(method)
    line = RunDir(folder).evaluations()[-1]
    found = json.loads(curvlab("eval", folder, "--json"))["metrics"]
    assert found == {name: line[name] for name in ("val_loss", "val_accuracy")}


def test_the_cost_of_kfac_tells_usual_steps_from_refreshing_ones() -> None:
    told = json.loads(curvlab("train", "config.toml", "--set", "method=kfac", "--dry-run", "--json"))
    usual, dear = told["costs"]
    assert usual["steps"] > dear["steps"]
    assert (usual["backwards"], dear["backwards"]) == (1, 2)
    assert (usual["labels"], dear["labels"]) == ([], ["model"])


def test_the_manifest_says_which_distribution_each_part_came_from() -> None:
    manifest = RunDir(trained("kfac", "--set", "run.epochs=0.01")).manifest
    assert any("curvlab-kfac 0.1.0" in origin for origin in manifest["parts"].values())
    assert manifest["plugins"]["curvlab-kfac"] == "0.1.0"
    assert manifest["task"] == "digits"
    assert manifest["method"] == "kfac"
