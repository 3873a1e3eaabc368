"""Comparison and history as rows of words, and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curvlab.bench.comparison import Change, Verdict
from curvlab.bench.history import Series
from curvlab.bench.numbers import in_words, ratio_in_words
from curvlab.bench.records import Key, Measurement, Result, Results

COMPARISON = ("verdict", "benchmark", "before", "after", "change", "confidence", "reason")
HISTORY = ("benchmark", "first", "last", "change", "regressions")


def comparison_row(known: Results, change: Change) -> tuple[str, ...]:
    """A line under ``COMPARISON``."""
    return (
        change.verdict.value,
        str(change.key),
        _number(known, change.key, change.base),
        _number(known, change.key, change.head),
        ratio_in_words(change.ratio, change.interval),
        change.confidence,
        change.intended.why if change.intended else "",
    )


def comparison_values(known: Results, change: Change) -> dict[str, Any]:
    """The same for a program."""
    return {
        "benchmark": change.key.benchmark,
        "case": dict(change.key.case),
        "verdict": change.verdict.value,
        "base": None if change.base is None else change.base.value,
        "head": None if change.head is None else change.head.value,
        "unit": known.unit(change.key),
        "ratio": change.ratio,
        "interval": change.interval,
        "confidence": change.confidence,
        "reason": change.intended.why if change.intended else None,
    }


def summary(base: Result, head: Result, changes: Sequence[Change]) -> str:
    """How many of each verdict."""
    counts = {verdict: sum(c.verdict is verdict for c in changes) for verdict in Verdict}
    words = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    return f"{base.short} to {head.short}: {words or 'nothing was measured of either'}"


def in_markdown(told: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A summary and a table below it; nothing in a cell ends it."""
    lines = [f"### Benchmarks: {told}", ""]
    if rows:
        table = [columns, ["---"] * len(columns), *rows]
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table]
        lines += [f"| {' | '.join(row)} |" for row in cells] + [""]
    return "\n".join(lines) + "\n"


def history_row(known: Results, one: Series) -> tuple[str, ...]:
    """A line under ``HISTORY``: what it was, what it is, and at which commits it got worse."""
    numbers = ["–" if x is None else in_words(x, one.unit) for x in (one.first, one.last)]
    ratio = one.last / one.first if one.first and one.last is not None else None
    worse = [
        f"{known.results[event.at].short} {ratio_in_words(event.change.ratio, None) or 'failed'}"
        for event in one.worse
    ]
    return (str(one.key), *numbers, ratio_in_words(ratio, None), ", ".join(worse))


def _number(known: Results, key: Key, measured: Measurement | None) -> str:
    if measured is None:
        return "–"
    return "failed" if measured.value is None else in_words(measured.value, known.unit(key))
