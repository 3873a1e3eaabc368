"""The study of step rules and damping of kfac-pinn, at a toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.studies.conftest import Script

TASK = "Poisson, 2-64-1"


def test_a_small_study_is_run_once_and_printed(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = script("kfac_pinn")
    asked = ["--runs", str(tmp_path), "--seconds", "0.3", "--seeds", "1", "--tasks", TASK]
    asked += ["--only", *list(study.VARIANTS)[:2]]
    assert study.main(asked) == 0
    ledger, table = (tmp_path / "runs.jsonl").read_text(), capsys.readouterr().out
    assert len(ledger.splitlines()) == 2
    runs = [json.loads(line) for line in ledger.splitlines()]
    assert all(found["found"]["steps"] > 0 and found["found"]["error"] > 0 for found in runs)
    shown = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    assert [name.strip() for name, cell in shown if cell.strip() != "–"] == list(study.VARIANTS)[:2]
    assert study.main(asked) == 0
    assert (tmp_path / "runs.jsonl").read_text() == ledger
    assert capsys.readouterr().out == table


def test_the_table_has_medians_and_ranges(script: Script) -> None:
    study = script("kfac_pinn")
    variant = next(iter(study.VARIANTS))
    runs = [{"error": e, "steps": k} for e, k in ((1e-3, 10), (2e-4, 30), (5e-3, 20))]
    line = study.table({(variant, TASK): runs}).splitlines()[2]
    assert line == f"| {variant} | 1.0e-03 (2.0e-04 – 5.0e-03; 20) | – | – |"


def test_every_variant_is_a_setting_of_the_method(script: Script) -> None:
    """Each of them takes steps that move the network."""
    study = script("kfac_pinn")
    task = study.Poisson(hidden=(8,), interior=30, boundary=20)
    for variant, settings in study.VARIANTS.items():
        begun, ended = (study.run(task, settings, 0, seconds) for seconds in (0.0, 0.02))
        assert (begun["steps"], begun["failure"], ended["failure"]) == (0, "", ""), variant
        assert ended["steps"] > 0, variant
        assert ended["error"] != begun["error"], variant
