"""The smoke run tells what raises from what has no meaning, and finds benchmarks as asv does."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from asv_runner.benchmarks.track import TrackBenchmark

pytestmark = pytest.mark.source_tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def smoke() -> ModuleType:
    spec = spec_from_file_location("smoke", ROOT / "asv_benchmarks" / "smoke.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Suite:
    """A benchmark with one parameter, which says what it does."""

    params = ("measures", "lacks", "raises")

    def setup_cache(self) -> dict[str, float]:
        return {"measures": 1.0}

    def setup(self, found: dict[str, float], how: str) -> None:
        if how == "lacks":
            raise NotImplementedError("this commit has none")

    def track_it(self, found: dict[str, float], how: str) -> float:
        return found[how]


def test_a_case_measures_lacks_or_raises(smoke: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    suite = Suite()
    benchmark = TrackBenchmark("suite.track_it", suite.track_it, [suite.track_it, suite])
    outcome: Callable[..., str] = smoke.outcome
    assert [outcome(benchmark, (how,), {}) for how in Suite.params] == ["done", "skipped", "failed"]
    told = capsys.readouterr()
    assert "suite.track_it('raises',)" in told.err
    assert "KeyError" in told.err
    assert told.out == ""


def test_benchmarks_are_found_and_counted() -> None:
    """By two processes, each with a share of them."""
    command = [sys.executable, "asv_benchmarks/smoke.py", "--jobs", "2", "--only", "KroneckerCosts"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    counts = re.findall(r"(\d+) benchmarks, (\d+) cases measured, 0 without meaning", done.stdout)
    assert [b for b, _ in counts] == ["1", "1"]
    assert sum(int(cases) for _, cases in counts) == 12
