"""One number against another: how they differ, how sure that is, and whether a gate lets it through.

Less is better in every benchmark.  A deterministic number is exact, and its gate is 1 %; of iterations,
products and steps one more is too many.  A time is known by a 99 % interval of its median: it has changed
where two intervals do not overlap, and its gate is a factor of two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from curvlab.bench.intended import Intended
from curvlab.bench.records import Key, Measurement, Result, Results

#: measures that count what an algorithm does
COUNTS = frozenset({"iterations", "products", "steps_to_target"})

EXACT, SURE, UNSURE, NONE = "exact", "99 %", "noise", "–"


class Verdict(Enum):
    """What came of a benchmark; the order is that of the table."""

    WORSE = "worse"  #: beyond its gate
    FAILED = "failed"  #: it raises, or ran out of time, and did not before
    SLOWER = "slower"  #: a time, within its gate
    INTENDED = "intended"  #: beyond its gate, and maintainers gave a reason
    GONE = "gone"  #: it has no number any more
    BETTER = "better"
    FIXED = "fixed"  #: it failed before
    NEW = "new"
    INCOMPARABLE = "incomparable"  #: the benchmark itself means something else now
    EQUAL = "equal"

    @property
    def regression(self) -> bool:
        """Whether it is to stop a change."""
        return self in (Verdict.WORSE, Verdict.FAILED)


@dataclass(frozen=True)
class Gates:
    """Factors by which a number may grow: counts, other deterministic numbers, and times."""

    count: float = 1.0
    exact: float = 1.01
    time: float = 2.0

    def of(self, key: Key) -> float:
        """The gate of one benchmark."""
        return self.time if key.timed else self.count if key.measure in COUNTS else self.exact


@dataclass(frozen=True)
class Change:
    """A benchmark's number before and after."""

    key: Key
    base: Measurement | None
    head: Measurement | None
    verdict: Verdict
    confidence: str = NONE
    intended: Intended | None = None

    @property
    def ratio(self) -> float | None:
        """After over before; ``None`` where one of them is no number."""
        if self.base is None or self.head is None or self.base.value is None or self.head.value is None:
            return None
        return _ratio(self.base.value, self.head.value)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Between which the ratio of two times lies, from the ends of both intervals."""
        a, b = self.base, self.head
        if a is None or b is None or not (a.low and a.high and b.low and b.high):
            return None
        return b.low / a.high, b.high / a.low


def compare(
    base: Result, head: Result, known: Results | None = None, gates: Gates | None = None
) -> list[Change]:
    """Every benchmark of either, the gravest first, then by how much; ``known`` holds what was intended."""
    keys = sorted({*base.values, *head.values})
    changes = [change(key, base.values.get(key), head.values.get(key), gates) for key in keys]
    if known is not None:
        a, b = known.results.index(base), known.results.index(head)
        changes = [explained(c, known, a, b) for c in changes]
    order = list(Verdict)
    return sorted(changes, key=lambda c: (order.index(c.verdict), -abs((c.ratio or 1.0) - 1.0), c.key))


def regressions(changes: Iterable[Change]) -> list[Change]:
    """Those that are to stop a change."""
    return [change for change in changes if change.verdict.regression]


def change(
    key: Key, base: Measurement | None, head: Measurement | None, gates: Gates | None = None
) -> Change:
    """One benchmark."""
    gates = gates or Gates()
    if base is None or head is None:
        failed = head is not None and head.value is None
        verdict = Verdict.GONE if head is None else Verdict.FAILED if failed else Verdict.NEW
        return Change(key, base, head, verdict)
    if base.version != head.version:
        return Change(key, base, head, Verdict.INCOMPARABLE)
    if base.value is None or head.value is None:
        both = base.value is None and head.value is None
        verdict = Verdict.EQUAL if both else Verdict.FIXED if base.value is None else Verdict.FAILED
        return Change(key, base, head, verdict)
    judged = _timed if key.timed else _counted
    verdict, confidence = judged(base, head, _ratio(base.value, head.value), gates.of(key))
    return Change(key, base, head, verdict, confidence)


def explained(found: Change, known: Results, base: int, head: int) -> Change:
    """A number that is worse for a reason is no regression; a failure remains one."""
    intended = known.reason(found.key, base, head) if found.verdict is Verdict.WORSE else None
    return replace(found, verdict=Verdict.INTENDED, intended=intended) if intended else found


def _counted(base: Measurement, head: Measurement, ratio: float, gate: float) -> tuple[Verdict, str]:
    if ratio > gate:
        return Verdict.WORSE, EXACT
    return (Verdict.BETTER if ratio < 1 / gate else Verdict.EQUAL), EXACT


def _timed(base: Measurement, head: Measurement, ratio: float, gate: float) -> tuple[Verdict, str]:
    if base.low is None or base.high is None or head.low is None or head.high is None:
        return Verdict.EQUAL, NONE  # one sample tells nothing
    if head.low > base.high:
        return (Verdict.WORSE if ratio >= gate else Verdict.SLOWER), SURE
    return (Verdict.BETTER, SURE) if head.high < base.low else (Verdict.EQUAL, UNSURE)


def _ratio(base: float, head: float) -> float:
    if base == head:
        return 1.0
    if base > 0:
        return head / base
    return float("inf") if head > base else 0.0
