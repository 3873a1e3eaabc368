"""The history as one HTML page: data, script and style lie within it; it opens from disk with no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from curvlab.bench.history import Event, Series, series
from curvlab.bench.intended import Intended
from curvlab.bench.records import Measurement, Results
from curvlab.pages.page import as_page, asset

#: digits of a number in the page, and of a time: more than a chart can show
_DIGITS, _DIGITS_OF_TIMES = 6, 4

#: bytes that a page may have
LIMIT = 2_000_000


def page(results: Results, title: str = "Benchmarks of curvlab") -> str:
    """The page's text; of a history too long for ``LIMIT`` bytes the latest commits."""
    kept = results
    while True:
        text = _filled(kept, title, left_out=len(results.results) - len(kept.results))
        if len(text.encode()) <= LIMIT or len(kept.results) < 2:
            return text
        kept = replace(kept, results=kept.results[len(kept.results) // 4 or 1 :])


def _filled(results: Results, title: str, left_out: int) -> str:
    main, style, script = (asset("curvlab.bench", f"page.{kind}") for kind in ("html", "css", "js"))
    about = {**_data(results, series(results)), "left_out": left_out}
    return as_page(main, title, style=style, script=script, data=about)


def _data(results: Results, found: Sequence[Series]) -> dict[str, Any]:
    """What the script reads: benchmarks by number, so that names stand once."""
    names = sorted({s.key.benchmark for s in found})
    place = {name: k for k, name in enumerate(names)}
    about = {s.key.benchmark: s for s in found}
    return {
        "machine": results.machine,
        "commits": [{"hash": r.short, "date": r.date, "subject": r.subject} for r in results.results],
        "benchmarks": [
            {
                "name": name,
                "unit": about[name].unit,
                "measure": about[name].key.measure,
                "names": [n for n, _ in about[name].key.case],
            }
            for name in names
        ],
        "intended": [{"commit": x.commit[:8], "why": x.why} for x in results.intended],
        "series": [_series(s, place[s.key.benchmark], results.intended) for s in found],
    }


def _series(one: Series, benchmark: int, intended: Sequence[Intended]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "b": benchmark,
        "c": [value for _, value in one.key.case],
        "v": _runs([None if m is None else _short(m.value, one.key.timed) for m in one.row]),
    }
    failed = [k for k, m in enumerate(one.row) if m is not None and m.value is None]
    if failed:
        found["f"] = failed
    if one.events:
        found["e"] = [_event(event, intended) for event in one.events]
    if one.since:
        found["s"] = one.since
    if any(m is not None and m.bounded for m in one.row):
        found["i"] = [_interval(m) for m in one.row]
    return found


def _runs(values: Sequence[float | None]) -> list[list[float | None]]:
    """``[how often, number]``, one after the other: most numbers stay as they are from commit to commit."""
    return [[len(list(group)), value] for value, group in groupby(values)]


def _event(event: Event, intended: Sequence[Intended]) -> list[Any]:
    """Place, place before, verdict, ratio, confidence; of a change that was intended, which."""
    ratio = event.change.ratio
    shown = None if ratio is None or math.isinf(ratio) else _short(ratio)
    found = [event.at, event.before, event.change.verdict.value, shown, event.change.confidence]
    return found if event.change.intended is None else [*found, intended.index(event.change.intended)]


def _interval(measured: Measurement | None) -> list[float | None] | None:
    if measured is None or not measured.bounded:
        return None
    return [_short(measured.low, timed=True), _short(measured.high, timed=True)]


def _short(value: float | None, timed: bool = False) -> float | None:
    if value is None:
        return None
    rounded = float(f"{value:.{_DIGITS_OF_TIMES if timed else _DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded
