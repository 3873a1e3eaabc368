"""Intended changes: no regressions, with their reason; growth is measured from what is comparable."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvlab.bench.commits import described
from curvlab.bench.compact import document, read, read_document
from curvlab.bench.comparison import compare, regressions
from curvlab.bench.history import series
from curvlab.bench.intended import Intended, parsed, read_intended
from curvlab.bench.records import Key, Measurement, Result, Results
from curvlab.errors import ResultsError

ROOT = Path(__file__).resolve().parents[2]
FLOPS = Key("steps.Costs.track_flops", (("method", "kfac"),))
COMMITS = [letter * 40 for letter in "abcd"]


def results(*numbers: float | None, versions: str = "1111", why: str = "", at: int = 1) -> Results:
    made = tuple(
        Result(commit, k, "e", {FLOPS: Measurement(number, version=version)})
        for k, (commit, number, version) in enumerate(zip(COMMITS, numbers, versions, strict=False))
    )
    intended = (Intended(COMMITS[at], r"track_flops\(kfac", why),) if why else ()
    return Results("box", made, {}, intended)


def test_a_change_with_a_reason_is_no_regression_and_growth_starts_there() -> None:
    known = results(1.0, 9.0, 9.9, why="It is better.")
    (found,) = series(known)
    assert [e.change.verdict.value for e in found.events] == ["intended", "worse"]
    assert (found.first, found.last) == (9.0, 9.9)
    first, second, third = known.results
    (change,) = compare(first, second, known)
    assert not regressions([change])
    assert change.intended is not None
    assert change.intended.why == "It is better."
    assert regressions(compare(second, third, known))  # the reason is that of another commit
    assert regressions(compare(first, second))


def test_a_reason_is_of_the_benchmarks_that_it_names_and_not_of_failures() -> None:
    known = results(1.0, 9.0, why="why")
    assert known.reason(Key("steps.Costs.track_flops", (("method", "sgd"),)), 0, 1) is None
    (failed,) = series(results(1.0, None, why="why"))
    assert [e.change.verdict.value for e in failed.events] == ["failed"]


def test_growth_is_measured_within_one_version_of_a_benchmark() -> None:
    (found,) = series(results(1.0, 700.0, 707.0, versions="122"))
    assert found.events == ()
    assert (found.first, found.last) == (700.0, 707.0)


def test_a_document_keeps_reasons(tmp_path: Path) -> None:
    import json

    known = results(1.0, 9.0, why="It is better.")
    path = tmp_path / "history.json"
    path.write_text(json.dumps(document(known)))
    assert read_document(path).intended == known.intended


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[change]]\ncommit = 'abcdef1'\n", "change 1: expected the keys commit, benchmarks, why"),
        ("[[change]]\ncommit = 'HEAD'\nbenchmarks = 'x'\nwhy = 'y'", "change 1: commit = .HEAD.: expected 7"),
        ("[[change]]\ncommit = 'abcdef1'\nbenchmarks = '('\nwhy = 'y'", "no regular expression"),
        ("[[change]]\ncommit = 'abcdef1'\nbenchmarks = 'x'\nwhy = ' '", "why is empty"),
        ("[[changes]]\ncommit = 'abcdef1'", "unknown key changes"),
        ("[[change]", r"intended\.toml:1:9 is not TOML"),
    ],
)
def test_a_file_that_cannot_be_meant_names_the_table(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "intended.toml"
    path.write_text(text)
    with pytest.raises(ResultsError, match=words):
        read_intended(path)
    assert read_intended(tmp_path / "none.toml") == ()
    assert parsed([]) == ()


@pytest.mark.source_tree
def test_every_reason_of_ours_explains_something_and_no_unexplained_number_has_doubled() -> None:
    ours = read_intended(ROOT / "asv_benchmarks" / "intended.toml")
    known = read(ROOT / "docs" / "_static" / "benchmarks" / "history.json")
    own = described(Results(known.machine, known.results, known.units, ours), ROOT)
    found = series(own)
    explained = {e.change.intended for one in found for e in one.events}
    assert set(own.intended) <= explained
    assert own.intended == known.intended  # the page shows them
    doubled = [str(s.key) for s in found for e in s.worse if (e.change.ratio or 0) >= 2]
    assert not doubled, f"{doubled}: explain them in asv_benchmarks/intended.toml, or mend them"
