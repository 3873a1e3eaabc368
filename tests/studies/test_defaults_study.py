"""The study of defaults, at a toy size, and what it calls stable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curvlab.tasks.fashion_mnist import FashionMnist
from tests.studies.conftest import Script


def test_a_small_study_is_run_once_and_written(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = script("defaults")
    monkeypatch.setitem(study.TASKS, "mlp", FashionMnist(hidden=(8,)))
    monkeypatch.setattr(study, "EXAMPLES", 50)
    where = ["--runs", str(tmp_path), "--page", str(tmp_path / "page.md"), "--tasks", "mlp"]
    study.main(["equal", *where, "--adamw-steps", "6", "--methods", "singd"])
    study.main(["stable", *where, "--steps", "12", "--methods", "kfac"])
    study.main(["lengths", *where, "--steps", "3", "--methods", "singd"])
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    kinds = [run["key"]["kind"] for run in runs]
    rates = len(study.RATES)
    assert kinds == ["equal"] * rates + ["ratio", "equal"] + ["stable"] * 3 + ["lengths"] * 8
    losses = [run["found"]["last"] for run in runs if run["key"]["kind"] == "stable"]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3), "the scale of the loss changes nothing"
    page = (tmp_path / "page.md").read_text()
    assert "| `singd`, adafactor |" in page
    assert "| `kfac` |" in page
    study.main(["stable", *where, "--steps", "12", "--methods", "kfac"])
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == len(runs)


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        ({}, True),
        ({"last": 2.1}, False),
        ({"worst": 4.1}, False),
        ({"failure": "step 3: the update is not finite", "loss": float("inf")}, False),
    ],
)
def test_what_is_stable(script: Script, found: dict[str, Any], holds: bool) -> None:
    run = {"first": 2.0, "worst": 2.5, "last": 1.0, "failure": "", "loss": 1.0, **found}
    assert script("defaults").stable(run) is holds
