"""The studies of callbacks around methods, at a toy size."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.studies.conftest import Script
from tests.tasks.small_fashion import write_fashion


@pytest.mark.parametrize("study", ["svd", "blocks", "adas"])
def test_a_toy_study_is_run_and_its_page_written(script: Script, study: str, tmp_path: Path) -> None:
    write_fashion(tmp_path)
    page = tmp_path / "page.md"
    epochs = "6" if study == "svd" else "2"  # ranks are reported once before they are pruned
    small = ["--channels", "2", "3", "4", "--hidden", "5", "--batch", "48", "--epochs", epochs]
    assert script("around").main([study, *small, "--root", str(tmp_path), "--page", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    rows = {"svd": "| `conv1` | 2 | 1 |", "blocks": "| `adamw` | prune |", "adas": "| `conv3` |"}
    assert rows[study] in text
    assert f"around.py {study} --epochs {epochs}" in text
