"""Reading the folder where asv keeps results: ``benchmarks.json``, and per machine a file per commit."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curvlab.bench.records import Key, Measurement, Result, Results, by_date, finite
from curvlab.errors import NoResults, ResultsError, UsageError

#: the layout that asv has written since 0.5
VERSION = 2

_NOT_RESULTS = ("benchmarks.json", "machine.json")


def read_folder(folder: Path, machine: str = "") -> Results:
    """The results of ``machine``, or of the one there is; raises ``ResultsError``, ``NoResults`` if none.

    A commit of which nothing was run is left out: asv died before its first result.
    """
    if not folder.exists():
        raise NoResults(f"{folder} does not exist: `asv run` makes it, --results names another")
    if not folder.is_dir():
        raise ResultsError(f"{folder} is not a folder: `asv run` makes one, --results names another")
    chosen = _machine(folder, machine)
    about = _benchmarks(folder)
    files = sorted(p for p in (folder / chosen).glob("*.json") if p.name not in _NOT_RESULTS)
    results = [result for result in (_result(path, about) for path in files) if result.run]
    if not results:
        died = f" ({len(files)} of asv's files are empty: it ended before its first result)" if files else ""
        raise NoResults(
            f"{folder / chosen} holds no results{died}: `asv run --machine {chosen}` measures commits"
        )
    units = {name: str(entry.get("unit", "")) for name, entry in about.items()}
    return Results(chosen, by_date(results), units)


def load(path: Path) -> Any:
    """A JSON document; raises ``ResultsError`` naming the file and the place."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ResultsError(f"{path} cannot be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ResultsError(f"{path} is not JSON: byte {err.start} is no UTF-8") from err
    except json.JSONDecodeError as err:
        raise ResultsError(
            f"{path}:{err.lineno}:{err.colno} is not JSON: {err.msg}; a torn file is to be deleted"
        ) from err


def _machine(folder: Path, asked: str) -> str:
    """The name of the machine whose results are read."""
    known = sorted(p.parent.name for p in folder.glob("*/machine.json"))
    known = known or sorted({p.parent.name for p in folder.glob("*/*.json")})
    if asked and known:
        if asked not in known:
            raise UsageError(f'no machine "{asked}" in {folder}. Machines: {", ".join(known) or "none"}')
        return asked
    if not known:
        raise NoResults(f"{folder} holds no results: `asv run` measures commits")
    if len(known) > 1:
        raise UsageError(f"{folder} has results of {' and '.join(known)}: say --machine")
    return known[0]


def _benchmarks(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """What asv knows of every benchmark; nothing if it did not write that down."""
    path = folder / "benchmarks.json"
    if not path.is_file():
        return {}
    found = load(path)
    if not isinstance(found, dict):
        raise ResultsError(f"{path} is not what asv writes: expected an object")
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)}


def _result(path: Path, about: Mapping[str, Mapping[str, Any]]) -> Result:
    document = load(path)
    try:
        if document["version"] != VERSION:
            raise ResultsError(f"{path} has asv's version {document['version']}, and {VERSION} can be read")
        columns = document["result_columns"]
        values: dict[Key, Measurement] = {}
        for name, row in document["results"].items():
            if row is None:
                continue
            cells = dict(zip(columns, row, strict=False))  # asv leaves off what is empty at the end
            values.update(_cases(name, cells, about.get(name, {}).get("param_names", [])))
        run = frozenset(name for name, row in document["results"].items() if row is not None)
        date = int(document["date"]) // 1000
        return Result(document["commit_hash"], date, document["env_name"], values, run=run)
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise ResultsError(f"{path} is not what asv writes: {type(err).__name__}: {err}") from err


def _cases(name: str, cells: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[Key, Measurement]]:
    """The numbers of one benchmark: ``NaN`` is a case without meaning, ``null`` one that failed."""
    params: list[list[str]] = cells.get("params") or []
    cases = list(itertools.product(*params))
    values = cells.get("result")
    values = [None] * len(cases) if values is None else values
    if len(values) != len(cases):
        raise ValueError(f"{name} has {len(values)} numbers for {len(cases)} cases")
    names = [*names, *(f"param{k + 1}" for k in range(len(names), len(params)))]
    for k, (case, value) in enumerate(zip(cases, values, strict=True)):
        if isinstance(value, float) and math.isnan(value):
            continue
        low, high = _at(cells.get("stats_ci_99_a"), k), _at(cells.get("stats_ci_99_b"), k)
        words = tuple((n, _word(p)) for n, p in zip(names, case, strict=True))
        yield Key(name, words), Measurement(finite(value), low, high, str(cells.get("version", "")))


def _at(column: Any, k: int) -> float | None:
    return finite(column[k]) if isinstance(column, list) and k < len(column) else None


def _word(text: str) -> str:
    """A parameter without the quotes of its ``repr``."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text
