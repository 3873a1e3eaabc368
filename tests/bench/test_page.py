"""The page carries everything within itself, whatever a commit's subject says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from curvlab.bench.intended import Intended
from curvlab.bench.page import LIMIT, page
from curvlab.bench.records import Key, Measurement, Result, Results
from tests.browser import is_installed, on_a_phone

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
    assert "default-src &#x27;none&#x27;" in text
    assert re.findall(r"\w+://[\w./]+", DATA.sub("", text)) == [
        "https://github.com/leeoniya/uPlot"
    ]  # a comment
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
    text = page(results(36, 1500))
    assert len(text.encode()) <= LIMIT
    (data,) = DATA.findall(text)
    found = json.loads(data)
    assert found["left_out"] > 0
    assert len(found["commits"]) == 36 - found["left_out"]
    assert found["commits"][-1]["date"] == 1_700_000_035


def test_numbers_that_stay_weigh_nothing() -> None:
    still = results(1, 1500)
    (one,) = still.results
    long = Results("box", tuple(replace(one, commit=f"{k:040x}", date=k) for k in range(200)), still.units)
    (data,) = DATA.findall(page(long))
    assert json.loads(data)["left_out"] == 0
    assert len(data) < LIMIT // 4


#: cards; then one of them in full; then the same in the dark
SHOWN = """
  const seen = () => ({
    overflow: overflow(), canvas: count("#cards canvas"), worse: count("#cards .mark.worse"),
    full: count("dialog[open] canvas"), rows: count("dialog tbody tr"),
    intended: count("dialog .mark.intended"),
  });
  const lit = () => frame.contentWindow.getComputedStyle(page.body).backgroundColor;
  const first = seen(), about = words("#about"), before = lit();
  page.querySelector(".card").click();
  await settled();
  const second = seen();
  while (root.dataset.theme === "light") page.getElementById("theme").click();
  await settled();
  const why = words("dialog .why"), turned = before !== lit();
  return { about, first, second, third: seen(), why, turned };
"""


@pytest.mark.skipif(not is_installed(), reason="chromium is not installed")
def test_a_browser_draws_it_from_disk_on_a_phone_in_light_and_dark(tmp_path: Path) -> None:
    grown = results(4, 3)
    meant = replace(grown, intended=(Intended(grown.results[1].commit, "steps", "it does more"),))
    found = on_a_phone(page(meant), SHOWN, tmp_path)
    assert found["about"][0].startswith("3 numbers at 4 commits")
    cards = {"overflow": 0, "canvas": 3, "worse": 6}
    assert found["first"] == {**cards, "full": 0, "intended": 0, "rows": 0}
    assert found["second"] == {**cards, "full": 1, "intended": 1, "rows": 4}
    assert found["third"] == found["second"]
    assert found["why"] == ["Intended: it does more"]
    assert found["turned"]
