"""asv's folder is read as asv wrote it; what is not asv's says what is wrong, and where."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from curvlab.bench.asv_folder import read_folder
from curvlab.bench.compact import document, read
from curvlab.bench.records import Key, Measurement
from curvlab.errors import ResultsError, UsageError
from tests.bench.asv_files import BASE, HEAD, MACHINE, Bench, around, pair, write

FLOPS = Bench("steps.Costs.track_flops", {"method": ["kfac", "sgd"], "dimension": [64, 257]}, "flops")
PLAIN = Bench("startup.track_modules", {}, "modules")
TIME = Bench("steps.Time.time_step", {"method": ["kfac"]}, "seconds")


def key(bench: Bench, *case: object) -> Key:
    return Key(bench.name, tuple((n, str(v)) for n, v in zip(bench.params, case, strict=True)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = [(FLOPS, [1.0, 2.0, math.nan, None]), (PLAIN, [300.0]), (TIME, [around(0.01, 0.1)])]
    return pair(tmp_path / "results", found, [*found[:2], (TIME, [[0.01]])])


def test_every_case_is_found_under_its_words(folder: Path) -> None:
    results = read_folder(folder)
    assert results.machine == MACHINE
    assert [result.commit for result in results.results] == [BASE, HEAD]
    values = results.results[0].values
    assert values[key(FLOPS, "kfac", 64)] == Measurement(1.0, version="1")
    assert values[key(PLAIN)].value == 300.0
    assert str(key(FLOPS, "kfac", 257)) == "steps.Costs.track_flops(kfac, 257)"
    assert results.unit(key(FLOPS, "kfac", 64)) == "flops"


def test_a_case_without_meaning_is_not_there_and_one_that_failed_has_no_number(folder: Path) -> None:
    values = read_folder(folder).results[0].values
    assert key(FLOPS, "sgd", 64) not in values
    assert values[key(FLOPS, "sgd", 257)].value is None


def test_a_time_is_bounded_by_asvs_interval_and_one_sample_by_nothing(folder: Path) -> None:
    before, after = read_folder(folder).results
    time = before.values[key(TIME, "kfac")]
    assert time.bounded
    assert time.low is not None
    assert time.high is not None
    assert 0.009 <= time.low <= 0.01 <= time.high <= 0.011
    assert not after.values[key(TIME, "kfac")].bounded


def test_a_benchmark_that_failed_whole_failed_in_every_case(tmp_path: Path) -> None:
    write(tmp_path, BASE, [(FLOPS, [None] * 4)])
    (result,) = read_folder(tmp_path).results
    assert [m.value for m in result.values.values()] == [None] * 4


def test_one_document_holds_all_that_the_folder_does(folder: Path, tmp_path: Path) -> None:
    results = read_folder(folder)
    path = tmp_path / "history.json"
    path.write_text(json.dumps(document(results)))
    again = read(path)
    for mine, theirs in zip(results.results, again.results, strict=True):
        assert (mine.commit, mine.date, mine.environment) == (theirs.commit, theirs.date, theirs.environment)
        assert mine.values.keys() == theirs.values.keys()
        for found, measured in mine.values.items():
            if measured.value is None:
                assert theirs.values[found].value is None
            else:
                assert theirs.values[found].value == pytest.approx(measured.value, rel=1e-8)
            assert theirs.values[found].bounded == measured.bounded
            if measured.bounded:
                assert theirs.values[found].low == pytest.approx(measured.low, rel=1e-8)
                assert theirs.values[found].high == pytest.approx(measured.high, rel=1e-8)
    assert again.units == results.units


def test_a_changed_version_survives_in_the_document(tmp_path: Path) -> None:
    pair(tmp_path / "r", [(PLAIN, [1.0])], [(Bench(PLAIN.name, unit="modules", version="2"), [1.0])])
    path = tmp_path / "history.json"
    path.write_text(json.dumps(document(read(tmp_path / "r"))))
    assert [r.values[key(PLAIN)].version for r in read(path).results] == ["1", "2"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 2}', '{"version": 1}', "\x00", '{"version": 2, "results": 3}']
)
def test_a_file_that_is_not_asvs_is_named(folder: Path, text: str) -> None:
    (folder / MACHINE / "torn.json").write_text(text)
    with pytest.raises(ResultsError, match=r"torn\.json"):
        read_folder(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "other"}', '{"format": "curvlab-bench-1"}'])
def test_a_document_that_is_not_ours_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(ResultsError, match=r"history\.json"):
        read(tmp_path / "history.json")


def test_a_folder_that_is_not_there_or_empty_says_what_fills_it(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ResultsError, match="asv run"):
            read_folder(path)


def test_of_several_machines_one_is_to_be_named(folder: Path) -> None:
    write(folder, BASE, [(PLAIN, [1.0])], machine="other")
    with pytest.raises(UsageError, match="--machine"):
        read_folder(folder)
    assert read_folder(folder, "other").machine == "other"
    with pytest.raises(UsageError, match="box, other"):
        read_folder(folder, "third")
