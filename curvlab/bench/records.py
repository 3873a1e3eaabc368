"""What was measured: a number per benchmark, case and commit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from curvlab.bench.intended import Intended


@dataclass(frozen=True, order=True)
class Key:
    """A benchmark and one case of it: ``steps.Costs.track_flops`` with method kfac on the MLP."""

    benchmark: str
    case: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.benchmark}({', '.join(value for _, value in self.case)})" if self.case else self.benchmark
        )

    @property
    def measure(self) -> str:
        """What is counted: ``flops``, ``state_bytes``, ``time``; a benchmark's name without asv's prefix."""
        kind, _, rest = self.benchmark.rpartition(".")[2].partition("_")
        return rest if kind == "track" else kind

    @property
    def timed(self) -> bool:
        """Whether the number depends on the machine, and not on the code alone."""
        return not self.benchmark.rpartition(".")[2].startswith("track_")

    def get(self, name: str) -> str:
        """The case's ``method`` or ``family``; empty if it has none."""
        return dict(self.case).get(name, "")


@dataclass(frozen=True)
class Measurement:
    """A number; ``None`` for a benchmark that failed.

    ``low`` and ``high`` bound a time's median with 99 % confidence, where there were samples enough.
    ``version`` is the benchmark's: numbers of different versions do not mean the same.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    version: str = ""

    @property
    def bounded(self) -> bool:
        """Whether its uncertainty is known."""
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class Result:
    """What was measured of one commit in one environment; a case without meaning there is not in it.

    ``date`` is the commit's, in seconds since 1970; ``run`` names the benchmarks that were run, also those
    without any case that has a meaning.
    """

    commit: str
    date: int
    environment: str
    values: Mapping[Key, Measurement] = field(repr=False)
    subject: str = ""
    run: frozenset[str] = frozenset()

    @property
    def short(self) -> str:
        """The commit as people write it."""
        return self.commit[:8]


@dataclass(frozen=True)
class Results:
    """Every result of one machine, by date; units by benchmark; the changes that were intended."""

    machine: str
    results: tuple[Result, ...]
    units: Mapping[str, str]
    intended: tuple[Intended, ...] = ()

    def of(self, commit: str) -> list[Result]:
        """A commit's results, by its hash or the first letters of it."""
        return [result for result in self.results if result.commit.startswith(commit)]

    def whole(self, commit: str) -> bool:
        """Whether every deterministic benchmark that there is was run at a commit, in one environment."""
        wanted = {name for name in self.units if not Key(name).timed}
        return any(wanted <= result.run for result in self.of(commit))

    def reason(self, key: Key, base: int, head: int) -> Intended | None:
        """The change of a benchmark that was intended after result ``base`` and not after ``head``."""
        commits = {result.commit for result in self.results[base + 1 : head + 1]}
        return next((x for x in self.intended if x.commit in commits and x.covers(key)), None)

    def unit(self, key: Key) -> str:
        """What a number counts; empty if no unit is given."""
        return self.units.get(key.benchmark, "")


def finite(value: object) -> float | None:
    """A number that is one, or ``None``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def by_date(results: Sequence[Result]) -> tuple[Result, ...]:
    """From early to late; of one second as they were given."""
    return tuple(sorted(results, key=lambda result: result.date))
