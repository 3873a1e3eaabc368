"""The manifest and ``curvlab env``: what a bug report needs."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from curvlab import __version__
from curvlab.engine.manifest import commit, dependencies, describe, environment, plugins
from curvlab.engine.training import prepare
from tests.engine.small_run import small_plan


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_is_named_and_changes_are_admitted(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert commit(tmp_path) is None, "no commit yet"
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "first")
    assert commit(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "changed": False}
    (tmp_path / "a").write_text("2")
    found = commit(tmp_path)
    assert found is not None
    assert found["changed"]


def test_outside_a_repository_and_without_git_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) is None


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvlab.engine.manifest.plugins", lambda: {"curvlab-x": "1"})
    asked = {
        "curvlab": ["numpy>=1.26", 'scikit-learn>=1.4.2; extra == "digits"', 'ruff>=0.6; extra == "dev"'],
        "curvlab-x": ["pluggy (<2,>=1.3)", "not-installed-anywhere>=1"],
    }
    monkeypatch.setattr(metadata, "requires", lambda name: asked[name])
    names = ("numpy", "pluggy", "scikit-learn")
    assert dependencies() == {name: metadata.version(name) for name in names}


def test_a_source_tree_that_is_not_installed_has_no_dependencies_to_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert dependencies() == {}


def test_the_environment_is_plain_data_and_knows_versions_devices_and_threads() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["torch"] == torch.__version__
    assert found["curvlab"] == __version__
    assert found["threads"] == torch.get_num_threads()
    assert found["devices"][0] == "cpu"
    assert found["plugins"] == plugins()


def test_the_manifest_describes_the_run_that_is_about_to_train(tmp_path: Path) -> None:
    plan = small_plan(epochs=2.0, seed=7)
    training = prepare(plan, lambda event: None)
    found = json.loads(json.dumps(describe(training, tmp_path)))
    assert found["seed"] == 7
    assert found["budget"] == {"epochs": 2.0, "steps": None, "seconds": None}
    assert found["examples"] == 72
    assert found["judged_by"] == {"metric": "val_loss", "more_is_better": False}
    assert found["state_bytes"] == training.optimizer.state_bytes()
    assert found["device"] == "cpu"
    assert found["dtype"] == "float32"
