"""The study of networks that solve differential equations, at a toy size."""

from __future__ import annotations

from pathlib import Path

from tests.studies.conftest import Script


def test_a_small_study_is_run_once_and_written(script: Script, tmp_path: Path) -> None:
    study = script("pinn")
    asked = ["--runs", str(tmp_path), "--page", str(tmp_path / "page.md"), "--seconds", "0.2"]
    asked += ["--tasks", "poisson-2", "--seeds", "1", "--only", "kfac-pinn", "adamw"]
    assert study.main(asked) == 0
    ledger = (tmp_path / "runs.jsonl").read_text()
    assert len(ledger.splitlines()) == 1 + len(study.RATES)
    page = (tmp_path / "page.md").read_text()
    assert "| kfac-pinn | searched |" in page
    assert "| soap | – |" in page
    assert study.main(asked) == 0
    assert (tmp_path / "runs.jsonl").read_text() == ledger


def test_the_best_rate_is_shown_by_its_median(script: Script) -> None:
    study = script("pinn")
    errors = {1e-3: (0.1, 0.2, 0.9), 3e-3: (0.05, 0.3, 0.31), 1e-2: (0.25, 0.26, 0.27)}
    runs = {
        study.name_of(study.key("t", "adamw", {"lr": lr}, seed, 1.0)): {"error": e, "steps": 7, "failure": ""}
        for lr, found in errors.items()
        for seed, e in zip(study.SEEDS, found, strict=True)
    }
    row = study.row("adamw", study.ENTRANTS["adamw"], "t", runs, 1.0)
    assert row == "| adamw | 0.001 | 7 | 2.0e-01 | 1.0e-01 – 9.0e-01 |"
