"""The study of the step rules and damping of kfac-pinn, at a toy size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies.conftest import Script


def test_a_small_study_is_run_once_and_printed(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = script("kfac_pinn")
    task, variant = next(iter(study.TASKS)), list(study.VARIANTS)[-1]
    asked = ["--runs", str(tmp_path), "--seconds", "0.2", "--seeds", "1"]
    asked += ["--tasks", task, "--only", variant]
    assert study.main(asked) == 0
    ledger = (tmp_path / "runs.jsonl").read_text()
    assert len(ledger.splitlines()) == 1
    assert study.main(asked) == 0
    assert (tmp_path / "runs.jsonl").read_text() == ledger
    (row,) = (line for line in capsys.readouterr().out.splitlines()[:7] if line.startswith(f"| {variant}"))
    assert row.count("–") == 3  # a range, and two tasks that were not asked for
