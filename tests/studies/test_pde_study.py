"""The study of networks that solve differential equations, at a toy size."""

from __future__ import annotations

from pathlib import Path

from tests.studies.conftest import Script


def test_a_small_study_is_run_once_and_written(script: Script, tmp_path: Path) -> None:
    study = script("pde")
    asked = ["--runs", str(tmp_path), "--page", str(tmp_path / "page.md"), "--seconds", "0.2"]
    asked += ["--tasks", "poisson-2", "--seeds", "1", "--only", "lm", "adamw"]
    assert study.main(asked) == 0
    ledger = (tmp_path / "runs.jsonl").read_text()
    assert len(ledger.splitlines()) == 1 + len(study.RATES)
    page = (tmp_path / "page.md").read_text()
    assert "| `lm` | searched |" in page
    assert "`soap`" not in page
    assert study.main(asked) == 0
    assert (tmp_path / "runs.jsonl").read_text() == ledger


def test_the_best_rate_is_shown_by_its_median(script: Script) -> None:
    study = script("pde")
    errors = {1e-3: (0.1, 0.2, 0.9), 3e-3: (0.05, 0.3, 0.31), 1e-2: (0.25, 0.26, 0.27)}
    runs = {
        f"{lr} {seed}": {"of": ["t", "adamw", {"lr": lr}, seed], "seconds": 1.0, "noted": {"1": {"error": e}}}
        for lr, found in errors.items()
        for seed, e in zip(study.SEEDS, found, strict=True)
    }
    row = study.row("adamw", study.ENTRANTS["adamw"], "t", runs, [1.0])
    assert row == "| `adamw` | 0.001 | 2.0e-01 (1.0e-01–9.0e-01) |"
