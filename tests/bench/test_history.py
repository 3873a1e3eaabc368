"""A benchmark over commits: changes are told at the commit that made them, within one environment."""

from __future__ import annotations

import pytest

from curvlab.bench.history import Filter, narrowed, series
from curvlab.bench.records import Key, Measurement, Result, Results
from curvlab.errors import UsageError

FLOPS = Key("steps.Costs.track_flops", (("method", "kfac"),))
BYTES = Key("structures.Members.track_state_bytes", (("family", "dense"),))


def results(*rows: tuple[float | None, ...], environments: str = "") -> Results:
    """A place per commit: numbers of ``FLOPS`` and ``BYTES``; None for none."""
    made = []
    for k, row in enumerate(zip(*rows, strict=True)):
        values = {key: Measurement(v) for key, v in zip((FLOPS, BYTES), row, strict=False) if v is not None}
        made.append(Result(str(k), k, environments[k : k + 1], values))
    return Results("box", tuple(made), {})


def test_a_change_is_told_once_and_at_the_commit_that_made_it() -> None:
    (found,) = series(results((1.0, 1.0, 2.0, 2.0, 1.5)))
    assert [(e.at, e.before, e.change.verdict.value) for e in found.events] == [
        (2, 1, "worse"),
        (4, 3, "better"),
    ]
    assert [e.at for e in found.worse] == [2]
    assert (found.first, found.last) == (1.0, 1.5)


def test_a_commit_without_a_number_is_passed_over() -> None:
    (found,) = series(results((1.0, None, None, 2.0)))
    assert [(e.at, e.before) for e in found.events] == [(3, 0)]


def test_numbers_of_two_environments_do_not_meet() -> None:
    (found,) = series(results((1.0, 5.0, 1.0, 6.0), environments="xyxy"))
    assert [(e.at, e.before) for e in found.events] == [(3, 1)]


def test_a_filter_takes_method_family_and_measure() -> None:
    both = results((1.0,), (2.0,))
    assert [s.key for s in series(narrowed(both, Filter(method="kfac")))] == [FLOPS]
    assert [s.key for s in series(narrowed(both, Filter(family="dense")))] == [BYTES]
    assert [s.key for s in series(narrowed(both, Filter(measure="state_bytes")))] == [BYTES]
    assert len(series(narrowed(both, Filter()))) == 2


def test_a_filter_that_nothing_passes_says_what_there_is() -> None:
    both = results((1.0,), (2.0,))
    with pytest.raises(UsageError, match='Did you mean "kfac"'):
        narrowed(both, Filter(method="kfca"))
    with pytest.raises(UsageError, match="Known: flops, state_bytes"):
        narrowed(both, Filter(measure="seconds"))
    with pytest.raises(UsageError, match="matches all"):
        narrowed(both, Filter(method="kfac", measure="state_bytes"))
