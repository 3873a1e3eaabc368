"""The study of neural operators, at a toy size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies.conftest import Script


def test_a_toy_study_is_run_and_its_page_written(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = script("operators")
    monkeypatch.setattr(study, "GRIDS", (8,))
    monkeypatch.setattr(study, "FINEST", 24)
    monkeypatch.setattr(study, "RATES", (1e-3,))
    monkeypatch.setattr(study, "METHODS", ("adamw", "soap"))
    page = tmp_path / "page.md"
    small = ["--grid", "8", "--size", "20", "--steps", "2", "--tuning", "0.001", "--seconds", "0.001"]
    study.main([*small, "--seeds", "1", "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    for row in (
        "| mixed, float16 between layers |",
        "| 8 × 8 |",
        "| `soap` |",
        "--size 20 --batch 20 --steps 2",
    ):
        assert row in text
