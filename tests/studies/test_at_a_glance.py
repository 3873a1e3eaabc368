"""The picture of the README and its page come from the numbers that are committed beside them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.studies.conftest import ROOT, Script

STUDIES = ROOT / "docs" / "studies"
#: (time, loss) of one run
POINTS = [(0.0, 8.0), (10.0, 4.0), (20.0, 1.0)]


def test_the_page_holds_the_committed_numbers(script: Script) -> None:
    study = script("at_a_glance")
    runs = json.loads((STUDIES / "at-a-glance.json").read_text())
    assert study.page(runs) == (STUDIES / "at-a-glance.md").read_text()
    for key, found in study.RACES.items():
        assert [len(seeds) for seeds in runs[key].values()] == [len(found.seeds)] * 2
        assert all(points[-1][0] >= found.steps for seeds in runs[key].values() for points in seeds)


def test_the_picture_is_small_and_drawn_anew(script: Script, tmp_path: Path) -> None:
    study = script("at_a_glance")
    page = tmp_path / "page.md"
    page.with_suffix(".json").write_text((STUDIES / "at-a-glance.json").read_text())
    assert study.main(["--draw", "--page", str(page)]) == 0
    assert page.with_suffix(".svg").stat().st_size < 100_000
    assert (STUDIES / "at-a-glance.svg").stat().st_size < 100_000


def test_between_two_points_the_logarithm_of_the_loss_is_a_line(script: Script) -> None:
    study = script("at_a_glance")
    assert study.reached(POINTS, 2.0) == pytest.approx(15.0)
    assert study.at(POINTS, 15.0) == pytest.approx(2.0)
    assert study.reached(POINTS, 0.5) == math.inf
    assert study.at(POINTS, 20.0) == pytest.approx(1.0)
