"""The page carries everything within itself, whatever a commit's subject says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from curvlab.bench.page import LIMIT, page
from curvlab.bench.records import Key, Measurement, Result, Results

DATA = re.compile(r'<script id="data" type="application/json">(.*?)</script>', re.DOTALL)


def results(commits: int, cases: int, subject: str = "A commit") -> Results:
    keys = [Key("steps.Costs.track_flops", (("method", f"m{k}"), ("network", "mlp"))) for k in range(cases)]
    made = tuple(
        Result(
            f"{k:040x}", 1_700_000_000 + k, "e", {key: Measurement(1e6 + k * 5e4) for key in keys}, subject
        )
        for k in range(commits)
    )
    return Results("box", made, {"steps.Costs.track_flops": "flops"})


def test_nothing_is_fetched_from_anywhere() -> None:
    text = page(results(3, 2))
    assert "://" not in DATA.sub("", text).replace('"http" + "://www.w3.org', "")
    assert not re.findall(r"<(?:link|img|iframe|script[^>]* src|style[^>]* src)\b", text)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", text)


def test_every_number_is_inside() -> None:
    (data,) = DATA.findall(page(results(3, 2)))
    found = json.loads(data)
    assert [c["hash"] for c in found["commits"]] == ["00000000"] * 3
    assert [s["v"] for s in found["series"]] == [[[1, 1_000_000], [1, 1_050_000], [1, 1_100_000]]] * 2
    assert [e[2] for e in found["series"][0]["e"]] == ["worse", "worse"]
    assert found["benchmarks"][0]["names"] == ["method", "network"]


def test_a_subject_cannot_end_the_data_nor_stand_for_a_part_of_the_page() -> None:
    evil = "</script><script>alert(1)</script> {{data}} {{script}}"
    (data,) = DATA.findall(page(results(2, 1, evil)))
    assert json.loads(data)["commits"][0]["subject"] == evil


def test_a_history_that_would_be_too_heavy_leaves_the_earliest_commits_out_and_says_so() -> None:
    """The worst there is: every number changes at every commit."""
    assert LIMIT == 2_000_000
    text = page(results(60, 1500))
    assert len(text.encode()) <= LIMIT
    (data,) = DATA.findall(text)
    found = json.loads(data)
    assert found["left_out"] > 0
    assert len(found["commits"]) == 60 - found["left_out"]
    assert found["commits"][-1]["date"] == 1_700_000_059


def test_numbers_that_stay_weigh_nothing() -> None:
    still = results(1, 1500)
    (one,) = still.results
    long = Results("box", tuple(replace(one, commit=f"{k:040x}", date=k) for k in range(200)), still.units)
    (data,) = DATA.findall(page(long))
    assert json.loads(data)["left_out"] == 0
    assert len(data) < LIMIT // 4


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_draws_it_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "history.html"
    path.write_text(page(results(4, 3)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        ["chromium", *options, "--virtual-time-budget=2000", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.count('class="card"') == 3
    assert done.stdout.count('class="mark worse"') == 9
    assert "3 numbers at 4 commits" in done.stdout
