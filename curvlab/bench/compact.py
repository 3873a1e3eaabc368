"""All results in one JSON document: what ``bench history --json`` prints, and the page carries within itself.

A benchmark's cases stand side by side, and a case's numbers in the order of the commits: a number, ``null``
for none, ``"failed"`` for a failure.  Where a time is bounded, ``low`` and ``high`` stand beside ``values``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curvlab.bench.asv_folder import load, read_folder
from curvlab.bench.intended import parsed
from curvlab.bench.intended import values as intended_values
from curvlab.bench.records import Key, Measurement, Result, Results
from curvlab.errors import ResultsError

FORMAT = "curvlab-bench-1"

FAILED = "failed"

#: digits that are kept: a gate looks at the third
_DIGITS = 9


def read(path: Path, machine: str = "") -> Results:
    """The results at ``path``: asv's folder, or a document of this format; raises ``ResultsError``."""
    return read_document(path) if path.is_file() else read_folder(path, machine)


def document(results: Results) -> dict[str, Any]:
    """All of it, as plain values."""
    environments = sorted({result.environment for result in results.results})
    commits = [
        {
            "hash": r.commit,
            "date": r.date,
            "subject": r.subject,
            "environment": environments.index(r.environment),
        }
        for r in results.results
    ]
    keys = sorted({key for result in results.results for key in result.values})
    benchmarks: dict[str, dict[str, Any]] = {}
    for key in keys:
        found = benchmarks.setdefault(
            key.benchmark,
            {"unit": results.unit(key), "names": [name for name, _ in key.case], "cases": []},
        )
        found["cases"].append(_case(key, [result.values.get(key) for result in results.results]))
    return {
        "format": FORMAT,
        "machine": results.machine,
        "environments": environments,
        "commits": commits,
        "benchmarks": benchmarks,
        "intended": intended_values(results.intended),
    }


def _case(key: Key, row: list[Measurement | None]) -> dict[str, Any]:
    found: dict[str, Any] = {"case": [value for _, value in key.case], "values": [_number(m) for m in row]}
    if any(m is not None and m.bounded for m in row):
        found["low"] = [None if m is None else _short(m.low) for m in row]
        found["high"] = [None if m is None else _short(m.high) for m in row]
    versions = ["" if m is None else m.version for m in row]
    if len({v for v in versions if v}) > 1:
        found["versions"] = versions
    return found


def _number(measured: Measurement | None) -> float | str | None:
    if measured is None:
        return None
    return FAILED if measured.value is None else _short(measured.value)


def _short(value: float | None) -> float | None:
    if value is None:
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def read_document(path: Path) -> Results:
    """What ``document`` gave; raises ``ResultsError``."""
    found = load(path)
    try:
        if found["format"] != FORMAT:
            raise ResultsError(f"{path} has the format {found['format']!r}, and {FORMAT!r} can be read")
        values: list[dict[Key, Measurement]] = [{} for _ in found["commits"]]
        for name, benchmark in found["benchmarks"].items():
            for case in benchmark["cases"]:
                key = Key(name, tuple(zip(benchmark["names"], case["case"], strict=True)))
                for column, measured in zip(values, _row(case), strict=True):
                    if measured is not None:
                        column[key] = measured
        results = tuple(
            Result(c["hash"], c["date"], found["environments"][c["environment"]], v, c["subject"])
            for c, v in zip(found["commits"], values, strict=True)
        )
        units = {name: benchmark["unit"] for name, benchmark in found["benchmarks"].items()}
        return Results(found["machine"], results, units, parsed(found.get("intended", [])))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as err:
        raise ResultsError(
            f"{path} is not what `curvlab bench history --json` prints: {type(err).__name__}: {err}"
        ) from err


def _row(case: Mapping[str, Any]) -> list[Measurement | None]:
    values = case["values"]
    nothing: list[Any] = [None] * len(values)
    low, high = case.get("low", nothing), case.get("high", nothing)
    versions = case.get("versions", [""] * len(values))
    return [
        None if value is None else Measurement(None if value == FAILED else float(value), a, b, v)
        for value, a, b, v in zip(values, low, high, versions, strict=True)
    ]
