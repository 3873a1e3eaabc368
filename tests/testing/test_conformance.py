"""The suites as such: with pytest and without, expected failures, versions, and what authors are told."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from curvlab.errors import UsageError
from curvlab.parts.schedules import Linear
from curvlab.parts.steps import Rate
from curvlab.protocols.schedule import Schedule
from curvlab.protocols.structure import Family, Structure
from curvlab.registry.kinds import KINDS
from curvlab.structures.diagonal import Diagonal, DiagonalMatrix
from curvlab.testing.conformance import (
    SUITES,
    Conformance,
    Naive,
    ScheduleConformance,
    Skipped,
    StructureConformance,
    check,
)
from curvlab.testing.surroundings import Surroundings

ROOT = Path(__file__).parents[2]


class TestDiagonal(StructureConformance):
    """As an author writes it: pytest collects a test for each check."""

    def make(self) -> Diagonal:
        return Diagonal()


class Suite(ScheduleConformance):
    """Checks that end in every way."""

    def check_good(self) -> None:
        """Nothing is wrong."""

    def check_bad(self) -> None:
        """Something is."""
        raise AssertionError("2 is not 3")

    def check_bug(self) -> None:
        """The part raises."""
        raise KeyError("x")

    def check_elsewhere(self) -> None:
        """Not of this part."""
        raise Skipped("no such thing here")

    def check_slow(self) -> None:
        """Right, by a detour."""
        raise Naive("write __matmul__")

    @check(since="1.7")
    def check_later(self) -> None:
        """Of a later API."""
        raise AssertionError("too early")

    @check(capability="flying")
    def check_flight(self) -> None:
        """For those that fly."""
        raise AssertionError("it does not")


def test_a_report_has_an_outcome_for_each_check_with_a_message() -> None:
    report = Suite.of(Linear(1.0, 0.1, 10)).run()
    found = {o.check: (o.result, o.message) for o in report}
    assert found["good"] == ("pass", "")
    assert found["bad"] == ("fail", "2 is not 3")
    assert found["bug"][0] == "fail"
    assert found["bug"][1].startswith("KeyError: 'x' (")
    assert found["elsewhere"] == ("skip", "no such thing here")
    assert found["slow"] == ("naive", "write __matmul__")
    assert found["later"] == ("skip", "new in API 1.7; the part is written for API 1.0")
    assert found["flight"] == ("skip", "not flying")
    assert report.failed == ("bad", "bug")
    assert report.part == "Linear(start=1.0, end=0.1, steps=10)"
    assert len(report) == sum(report.counts().values()) == len(Suite.names())
    with pytest.raises(AssertionError, match=r"schedule Linear.*fails 2 checks\nbad: 2 is not 3"):
        report.require()


def test_checks_say_what_they_are() -> None:
    found = {c.name: c for c in Suite.of(Linear(1.0, 0.1, 10)).checks()}
    assert (found["later"].since, found["good"].since) == ("1.7", "1.0")
    assert found["flight"].capability == "flying"
    assert found["good"].law == "Nothing is wrong."
    found["good"].run()


def test_a_part_of_a_newer_api_is_held_to_newer_checks() -> None:
    report = Suite.of(Linear(1.0, 0.1, 10), api_version="1.7").run()
    assert report["later"].result == "fail"


def test_an_expected_failure_is_one_with_its_reason_and_a_surprise_is_a_failure() -> None:
    expected = {"bad": "2 + 2", "good": "never mind", "elsewhere": "nothing"}
    report = Suite.of(Linear(1.0, 0.1, 10), expected_failures=expected).run()
    assert (report["bad"].result, report["bad"].message) == ("xfail", "2 + 2")
    assert report["good"].result == "fail"
    assert "expected to fail (never mind), and it passes" in report["good"].message
    assert report["elsewhere"].result == "skip"


def test_an_expected_failure_of_no_check_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r'expected_failures: no check "bed".*"bad"'):
        Suite.of(Linear(1.0, 0.1, 10), expected_failures={"bed": "?"})


def test_every_kind_has_a_suite_of_laws_that_are_put_in_words() -> None:
    assert set(SUITES) == set(KINDS)
    for kind, suite in SUITES.items():
        for c in suite.of(None).checks():
            assert c.law.endswith("."), (kind, c.name, c.law)
            assert c.since == "1.0"
            assert hasattr(suite, f"test_{c.name}"), (kind, c.name)


def test_a_check_puts_back_what_a_part_leaves_changed() -> None:
    class Rude(ScheduleConformance):
        def check_rudeness(self) -> None:
            torch.set_grad_enabled(False)
            torch.set_default_dtype(torch.float64)
            torch.manual_seed(7)
            warnings.simplefilter("error")

    before = Surroundings.now()
    assert Rude.of(Linear(1.0, 0.1, 10)).run()["rudeness"].result == "pass"
    assert torch.is_grad_enabled()
    assert not before.random_changes() + before.mode_changes()


# what authors are told


@dataclass(frozen=True)
class Half(Family):
    """A family that lacks half of what it owes."""

    def project(self, S: Any) -> Any:
        return HalfMatrix()  # type: ignore[abstract]


@dataclass(frozen=True)
class HalfMatrix(Structure):
    """A member that lacks a method."""

    def dense(self) -> Any:
        return None


@dataclass(frozen=True)
class Whole(Half):
    """A family whose members are not whole."""

    def scalars(self, d: int) -> int:
        return d


def making(part: Any) -> Conformance:
    class Making(StructureConformance):
        def make(self) -> Any:
            return part()

    return Making()


def message(suite: Conformance) -> str:
    return suite.outcome(suite.named("obligations")).message


def test_a_suite_without_a_make_says_so() -> None:
    assert "StructureConformance does not define make(self)" in message(StructureConformance())


def test_a_class_in_place_of_a_part_is_named() -> None:
    said = message(making(lambda: Diagonal))
    assert "Making.make() returned the class Diagonal" in said
    assert "return an instance, Diagonal(…)" in said


def test_a_part_of_another_kind_is_named_with_what_is_owed() -> None:
    said = message(making(lambda: Rate(0.1)))
    assert "Making.make() returned a Rate; expected a part of kind structure" in said
    assert "curvlab.protocols.structure.Family" in said


def test_an_obligation_that_is_not_met_is_named_with_what_it_owes() -> None:
    said = message(making(Half))
    assert "Making.make(): Half does not define" in said
    assert "scalars(self, d), required by curvlab.protocols.structure.Family" in said
    assert "How many scalars a member of dimension d stores." in said


def test_an_obligation_of_a_member_is_named_too() -> None:
    said = message(making(Whole))
    assert "HalfMatrix does not define" in said
    assert "the property d, required by curvlab.protocols.structure.Structure: Dimension." in said
    assert "tensors(self), required by curvlab.protocols.structure.Structure" in said


@dataclass(frozen=True)
class Flat(Diagonal):
    """Whose members' matrices have one axis too few."""

    def project(self, S: Any) -> Any:
        return FlatMatrix(S.diagonal(dim1=-2, dim2=-1).clone(), self)


@dataclass(frozen=True)
class FlatMatrix(DiagonalMatrix):
    def dense(self) -> Any:
        return self.entries


@dataclass(frozen=True)
class Whole_(Schedule):
    """A schedule of whole numbers."""

    def __call__(self, step: int) -> Any:
        return step


def test_a_wrong_shape_is_named_with_the_method_and_the_shape_that_it_owes() -> None:
    assert message(making(Flat)) == "FlatMatrix.dense().shape is (5,), expected (5, 5)"


def test_a_wrong_type_is_named_with_the_type_that_is_owed() -> None:
    assert ScheduleConformance.of(Whole_()).run()["number"].message == "Whole_(0) must return a float, not 0"


# with pytest

AUTHORS_FILE = """
from dataclasses import dataclass
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.conformance import StructureConformance

@dataclass(frozen=True)
class Wrong(Diagonal):
    def scalars(self, d):
        return d + 1

class TestDiagonal(StructureConformance):
    def make(self):
        return Diagonal()

class TestExpected(StructureConformance):
    expected_failures = {"scalars": "counts one too many"}
    def make(self):
        return Wrong()

class TestWrong(StructureConformance):
    def make(self):
        return Wrong()
"""


def test_pytest_collects_a_test_for_each_check_of_an_authors_class(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(AUTHORS_FILE)
    options = [
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        "-rA",
        "-q",
        "--show-capture=no",
    ]
    chosen = "scalars or inverse or settings or stacked_numbers"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-k", chosen, "test_mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    for name in ("scalars", "inverse", "settings", "stacked_numbers"):
        assert f"PASSED test_mine.py::TestDiagonal::test_{name}" in lines
    # pytest 8 says "reason: "
    expected = re.compile("XFAIL test_mine.py::TestExpected::test_scalars - (reason: )?counts one")
    assert any(expected.match(line) for line in lines)
    failed = [line for line in lines if line.startswith("FAILED")]
    assert len(failed) == 1
    assert failed[0].startswith("FAILED test_mine.py::TestWrong::test_scalars")
    assert "AssertionError: Wrong.scalars(1) returns 2, and 1 scalars are stored" in done.stdout


def test_the_suites_do_not_need_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; from curvlab.testing.conformance import SUITES;"
        "from curvlab.parts.schedules import Linear;"
        "SUITES['schedule'].of(Linear(1.0, 0.0, 5)).run().require()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
