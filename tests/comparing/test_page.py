"""The page of a comparison carries everything within itself, whatever runs are called."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from curvlab.comparing.comparison import compared
from curvlab.comparing.outline import outline, runs_below
from curvlab.comparing.page import LIMIT, page
from curvlab.pages.page import asset
from tests.browser import is_installed, on_a_phone
from tests.comparing.made import made

DATA = re.compile(r'<script id="data" type="application/json">(.*?)</script>', re.DOTALL)
EVIL = "</script><img src=x onerror=alert(1)> {{data}} {{script}} <b>"


def page_of(folder: Path) -> str:
    return page(compared([outline(path) for path in runs_below(folder)], None, "steps"))


def two_runs(folder: Path) -> Path:
    for seed in (0, 1):
        made(folder / f"a{seed}", [3.0 + seed, 2.0, 1.0], seed=seed, method={"use": EVIL, "lr": 0.1})
    made(folder / "b", [2.0, 1.5, 1.0], method={"use": "other"}, summary=None)
    return folder


def test_the_page_holds_the_numbers_the_library_and_its_license_and_may_ask_for_nothing(
    tmp_path: Path,
) -> None:
    text = page_of(two_runs(tmp_path))
    assert text.count(asset("curvlab.pages", "uplot-LICENSE.txt").strip()) == 2  # of its script and its style
    assert "default-src &#x27;none&#x27;" in text
    assert not re.findall(r"<(?:link|img|iframe|script[^>]* src|style[^>]* src)\b", DATA.sub("", text))
    assert not re.search(r"@import|fetch\(|XMLHttpRequest", text)
    (data,) = DATA.findall(text)
    (task,) = json.loads(data)["tasks"]
    row = next(row for row in task["rows"] if row["label"].startswith(EVIL))
    assert [run["e"]["y"]["val_loss"] for run in row["runs"]] == [[3, 2, 1], [4, 2, 1]]
    assert row["runs"][0]["e"]["x"] == {
        "steps": [10, 20, 30],
        "examples": [320, 640, 960],
        "seconds": [5, 10, 15],
    }
    assert len(row["runs"][0]["s"]["y"]["loss"]) == 30


def test_a_thousand_runs_are_compared_in_ten_seconds_on_a_page_of_three_megabytes(tmp_path: Path) -> None:
    assert LIMIT == 3_000_000
    for k in range(1000):
        values = [5.0 / (1 + j) + k / 1000 for j in range(15)]
        made(tmp_path / f"run-{k:04}", values, seed=k % 4, method={"use": "sgd", "lr": k // 4}, every=3)
    started = time.process_time()
    text = page_of(tmp_path)
    assert time.process_time() - started < 10.0
    assert len(text.encode()) <= LIMIT
    data = json.loads(DATA.findall(text)[0])
    assert len(data["tasks"][0]["rows"]) == 250
    assert data["left_out"] == 0


def test_long_curves_are_thinned_to_medians_and_the_page_says_so(tmp_path: Path) -> None:
    made(tmp_path / "long", [1.0 + (k % 3 == 2) * 1000 for k in range(3000)], every=1)
    data = json.loads(DATA.findall(page_of(tmp_path))[0])
    (run,) = data["tasks"][0]["rows"][0]["runs"]
    assert data["points"] == 1000
    assert run["e"]["y"]["val_loss"] == [1] * 1000
    assert run["e"]["x"]["steps"][:2] == [2, 5]


#: what the page shows
SHOWN = """return {
  ...page.getElementById("chart").dataset, overflow: overflow(), canvas: count("canvas"),
  rows: count("tbody tr"), images: page.images.length, labels: words(".chip + span"),
};"""


@pytest.mark.skipif(not is_installed(), reason="chromium is not installed")
def test_a_browser_draws_it_from_disk_on_a_phone(tmp_path: Path) -> None:
    found = on_a_phone(page_of(two_runs(tmp_path / "runs")), SHOWN, tmp_path)
    assert sorted(found.pop("labels")) == [EVIL, "other 1 of 1: unfinished"]
    assert found == {
        **{"curves": "2", "bands": "1", "drawings": "1"},
        **{"overflow": 0, "canvas": 1, "rows": 2, "images": 0},
    }
