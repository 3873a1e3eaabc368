"""A benchmark over commits, and where in it something changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches

from curvlab.bench.comparison import Change, Gates, Verdict, change, explained
from curvlab.bench.records import Key, Measurement, Result, Results
from curvlab.errors import UsageError

#: what a chart marks
_MARKED = (Verdict.WORSE, Verdict.FAILED, Verdict.INTENDED, Verdict.BETTER, Verdict.FIXED)


@dataclass(frozen=True)
class Event:
    """A change at a commit, against the last commit before it that has a number in the same environment."""

    at: int
    before: int
    change: Change


@dataclass(frozen=True)
class Series:
    """One case's measurements, one place per commit.

    Growth is measured from place ``since``: the first number of the last one's version and environment, or
    that of the last change that was intended.
    """

    key: Key
    unit: str
    row: tuple[Measurement | None, ...]
    events: tuple[Event, ...]
    since: int = 0

    @property
    def first(self) -> float | None:
        """The number that growth is measured from."""
        return next(iter(self._numbers(self.since)), None)

    @property
    def last(self) -> float | None:
        """The latest number."""
        return next(iter(reversed(list(self._numbers()))), None)

    @property
    def worse(self) -> list[Event]:
        """The regressions."""
        return [event for event in self.events if event.change.verdict.regression]

    def _numbers(self, since: int = 0) -> Iterator[float]:
        return (m.value for m in self.row[since:] if m is not None and m.value is not None)


@dataclass(frozen=True)
class Filter:
    """Which series are wanted; an empty word wants all."""

    method: str = ""
    family: str = ""
    measure: str = ""

    def wants(self, key: Key) -> bool:
        """Whether a case has that method, that family and that measure."""
        return (
            self.method in ("", key.get("method"))
            and self.family in ("", key.get("family"))
            and self.measure in ("", key.measure)
        )

    def nothing(self, keys: Collection[Key]) -> UsageError:
        """What to say when it wants none of ``keys``."""
        known = {
            "method": {key.get("method") for key in keys},
            "family": {key.get("family") for key in keys},
            "measure": {key.measure for key in keys},
        }
        for name, words in known.items():
            asked = getattr(self, name)
            if asked and asked not in words:
                close = get_close_matches(asked, words, n=1)
                guess = f'Did you mean "{close[0]}"?  ' if close else ""
                return UsageError(
                    f'no benchmark of {name} "{asked}"\n  {guess}Known: {", ".join(sorted(words - {""}))}'
                )
        return UsageError("no benchmark matches all of these filters")


def narrowed(results: Results, wanted: Filter) -> Results:
    """The same with the cases that are wanted alone; raises ``UsageError`` if there is none."""
    kept = [
        replace(r, values={key: m for key, m in r.values.items() if wanted.wants(key)})
        for r in results.results
    ]
    if not any(result.values for result in kept):
        raise wanted.nothing({key for result in results.results for key in result.values})
    return replace(results, results=tuple(kept))


def series(results: Results, gates: Gates | None = None) -> list[Series]:
    """Every case, by name."""
    keys = sorted({key for result in results.results for key in result.values})
    return [_one(results, key, gates or Gates()) for key in keys]


def _one(results: Results, key: Key, gates: Gates) -> Series:
    row = tuple(result.values.get(key) for result in results.results)
    events = tuple(_events(key, results, row, gates))
    return Series(key, results.unit(key), row, events, _since(results.results, row, events))


def _since(
    results: tuple[Result, ...], row: tuple[Measurement | None, ...], events: tuple[Event, ...]
) -> int:
    """The first place whose number means what the last one means."""
    numbers = [(k, m) for k, m in enumerate(row) if m is not None and m.value is not None]
    if not numbers:
        return 0
    at, last = numbers[-1]
    alike = [
        k
        for k, m in numbers
        if m.version == last.version and results[k].environment == results[at].environment
    ]
    intended = [e.at for e in events if e.change.verdict is Verdict.INTENDED and e.at in alike]
    return max([alike[0], *intended])


def _events(key: Key, known: Results, row: tuple[Measurement | None, ...], gates: Gates) -> Iterator[Event]:
    last: dict[str, int] = {}
    for k, (result, measured) in enumerate(zip(known.results, row, strict=True)):
        if measured is None:
            continue
        before = last.get(result.environment)
        last[result.environment] = k
        if before is None:
            continue
        found = explained(change(key, row[before], measured, gates), known, before, k)
        if found.verdict in _MARKED:
            yield Event(k, before, found)
