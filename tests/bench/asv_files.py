"""Results as asv itself writes them: its own class fills the folder, so its format is what is read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asv.results import Results
from asv.runner import BenchmarkResult

MACHINE = "box"
BASE, HEAD = "a" * 40, "b" * 40


@dataclass
class Bench:
    """A benchmark with its cases: a number each, NaN for one without meaning, None for one that failed.

    Samples in seconds stand for a time, from which asv computes the number.
    """

    name: str
    params: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unit: str = "unit"
    version: str = "1"

    @property
    def cases(self) -> list[tuple[Any, ...]]:
        """Every combination of the parameters."""
        return list(itertools.product(*self.params.values()))

    @property
    def about(self) -> dict[str, Any]:
        """What asv writes into ``benchmarks.json``."""
        return {
            "name": self.name,
            "param_names": list(self.params),
            "params": [[repr(value) for value in values] for values in self.params.values()],
            "unit": self.unit,
            "version": self.version,
            "type": "time" if ".time_" in self.name else "track",
        }


def write(
    folder: Path,
    commit: str,
    found: Sequence[tuple[Bench, Sequence[Any]]],
    *,
    date: int = 1_700_000_000,
    environment: str = "virtualenv-py3.11-torch2.13.0",
    machine: str = MACHINE,
) -> None:
    """A commit's results in asv's folder, beside those that are there."""
    results = Results(
        {"machine": machine, "python": "3.11"},
        {"torch": "2.13.0"},
        commit,
        date * 1000,
        "3.11",
        environment,
        {},
    )
    path = folder / "benchmarks.json"
    known = json.loads(path.read_text()) if path.is_file() else {"version": 2}
    for bench, values in found:
        assert len(values) == len(bench.cases)
        samples = [v if isinstance(v, list) else None for v in values]
        numbers = [0.0 if isinstance(v, list) else v for v in values]  # asv computes it
        count = [None if s is None else 1 for s in samples]
        results.add_result(bench.about, BenchmarkResult(numbers, samples, count, 0, "", None))
        known[bench.name] = bench.about
    (folder / machine).mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known))
    (folder / machine / "machine.json").write_text(json.dumps({"machine": machine, "version": 1}))
    results.save(str(folder))


def pair(
    folder: Path, base: Sequence[tuple[Bench, Sequence[Any]]], head: Sequence[tuple[Bench, Any]]
) -> Path:
    """Two commits."""
    write(folder, BASE, base)
    write(folder, HEAD, head, date=1_700_000_100)
    return folder


def around(middle: float, spread: float, count: int = 30) -> list[float]:
    """Samples of a time, evenly within ``middle · (1 ± spread)``."""
    return [middle * (1 + spread * (2 * k / (count - 1) - 1)) for k in range(count)]


def names(output: str, verdict: str) -> Iterator[str]:
    """The benchmarks that a table gives a verdict."""
    for line in output.splitlines():
        first, _, rest = line.partition("  ")
        if first.strip() == verdict:
            yield rest.strip().partition("  ")[0]
