"""The study of Hessian-free optimization: what it calls reached, and that a small one runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.studies.conftest import Script


def run(*losses: float, target: float) -> dict[str, Any]:
    """A run that spends 10 seconds, 100 examples, 1 product and 5 product-examples between two looks."""
    points = [[10.0 * k, 100 * k, k, 5 * k, loss] for k, loss in enumerate(losses)]
    return {"points": points, "target": target, "metrics": {}, "failure": ""}


def test_a_target_is_reached_between_two_looks_in_the_logarithm_of_the_loss(script: Script) -> None:
    page = script("hessian_free_page")
    found = run(100.0, 10.0, 1.0, target=10.0**0.5)
    assert page.reached(found, page.SECONDS) == pytest.approx(15.0)
    assert page.reached(found, page.PRODUCT_EXAMPLES) == pytest.approx(7.5)
    assert page.reached(run(100.0, 10.0, target=10.0), page.SECONDS) == pytest.approx(10.0)
    assert page.reached(run(100.0, 10.0, target=1.0), page.SECONDS) == math.inf


def test_what_is_not_reached_is_never_a_speed_up(script: Script) -> None:
    page = script("hessian_free_page")
    plain = run(100.0, 50.0, 10.0, target=10.0)
    quick, never = run(100.0, 10.0, target=10.0), run(100.0, 90.0, target=10.0)
    runs = {
        "plain": {0: plain, 1: plain},
        "quick": {0: quick, 1: quick},
        "half": {0: quick, 1: never},
        "never": {1: never},
    }
    assert page.speedup(runs, "quick", page.SECONDS) == "2×"
    assert page.speedup(runs, "never", page.SECONDS) == "–"
    assert page.speedup(runs, "half", page.SECONDS).startswith("1 (0")
    assert "not reached" in page.table(runs)
    assert "never (seeds: 1)" in page.table(runs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_small_study_is_run_once_and_written(script: Script, tmp_path: Path) -> None:
    study = script("hessian_free")
    asked = ["--runs", str(tmp_path / "runs"), "--page", str(tmp_path / "page.md"), "--task", "autoencoder"]
    asked += ["--seeds", "0", "--budget", "2", "--only", "with both", study.ADAMW]
    assert study.main(asked) == 0
    lines = (tmp_path / "runs" / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 3
    for line in lines:
        found = json.loads(line)["found"]
        assert found["points"][-1][-1] < found["points"][0][-1]
        assert not found["failure"]
    assert "with both" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert study.main(asked) == 0
    assert len((tmp_path / "runs" / "runs.jsonl").read_text().splitlines()) == 3
