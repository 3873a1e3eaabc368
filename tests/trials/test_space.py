"""Ranges: their values, and what is wrong with them, at the line where it stands."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest

from curvlab.config import load
from curvlab.errors import Fault
from curvlab.trials.space import Space, at_point, radical_inverse, values_of


def space(folder: Path, text: str) -> tuple[Space, list[Fault]]:
    path = folder / "over.toml"
    path.write_text(f"[over]\n{text}")
    faults: list[Fault] = []
    return Space.of(load(path).tree.table["over"], faults), faults


def test_a_grid_is_every_combination_and_holds_the_ends_of_its_intervals(tmp_path: Path) -> None:
    found, faults = space(
        tmp_path,
        'method.lr = { low = 1e-4, high = 1.0, log = true, points = 5 }\n"a.b" = [1, { use = "x" }]\n'
        "c = { low = 1, high = 3, points = 9 }\n",
    )
    assert faults == []
    points = [values_of(point) for point in found.grid()]
    assert found.combinations == len(points) == 5 * 2 * 3  # of nine whole numbers from 1 to 3, three differ
    rates = list(dict.fromkeys(point["method.lr"] for point in points))
    assert rates[0] == 1e-4
    assert rates[-1] == 1.0
    assert [math.log10(b / a) for a, b in itertools.pairwise(rates)] == pytest.approx([1.0] * 4)
    assert [point["c"] for point in points[:3]] == [1, 2, 3]  # the last key varies first
    assert points[3]["a.b"] == {"use": "x"}


def test_a_halton_sequence_fills_every_cell_of_every_key_equally(tmp_path: Path) -> None:
    assert [radical_inverse(k, 2) for k in range(1, 5)] == [0.5, 0.25, 0.75, 0.125]
    assert radical_inverse(5, 3) == pytest.approx(2 / 3 + 1 / 9)
    found, faults = space(
        tmp_path,
        "x = { low = 0.0, high = 8.0 }\n"
        "y = { low = 1.0, high = 27.0, log = true }\nz = { low = 0, high = 4 }\n",
    )
    assert faults == []
    points = [values_of(point) for point in found.halton(8 * 27 * 5, seed=3)]
    assert [values_of(point) for point in found.halton(10, seed=3)] == points[:10]
    assert [values_of(point) for point in found.halton(10, seed=4)] != points[:10]
    for cells in (
        Counter(int(point["x"]) for point in points),
        Counter(int(math.log(point["y"], 3)) for point in points),
        Counter(point["z"] for point in points),
    ):
        counts = sorted(cells.values())
        assert counts[-1] - counts[0] <= 1 + 4  # rounded numbers may cross the edge of a cell


def test_a_sequence_has_no_point_twice_and_ends_with_the_space(tmp_path: Path) -> None:
    found, _ = space(tmp_path, 'x = [1, 2, 3]\ny = ["a", "b"]\n')
    points = [values_of(point) for point in found.halton(100, seed=0)]
    assert len(points) == 6
    assert all(points.count(point) == 1 for point in points)


def test_every_fault_stands_at_its_line(tmp_path: Path) -> None:
    _, faults = space(
        tmp_path,
        "a = []\nb = 3\nc = { low = 1 }\nd = { low = 2, high = 1 }\n"
        "e = { low = 0.0, high = 1.0, log = true }\n"
        'f = { low = "1", high = inf, step = 2 }\ng = { low = 1, high = 2, points = 1 }\n'
        '"a b.c" = [1]\nrun.name = ["x"]\n',
    )
    assert [(fault.line, fault.message) for fault in faults] == [
        (2, "the list of values is empty"),
        (3, "expected a list of values or { low = a, high = b }, got 3"),
        (4, "high is missing"),
        (5, "high must be above low = 2, got 1"),
        (6, "low must be positive with log = true, got 0.0"),
        (7, "unknown key step of an interval"),
        (7, 'expected a finite number, got the string "1"'),
        (7, "expected a finite number, got inf"),
        (8, "points must be at least 2, got 1"),
        (9, '"a b.c" is not a key'),
        (10, "run.name: each trial has a name of its own"),
    ]


def test_a_point_overrides_its_configuration_and_keeps_the_place_of_its_values(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('[method]\nuse = "sgd"\nlr = 1.0\n')
    found, _ = space(tmp_path, "method.lr = [0.1, 0.2]\n")
    faults: list[Fault] = []
    base = load([tmp_path / "base.toml"], ["method.lr=7.0"])
    layers = [at_point(base, point, "n-0001", faults) for point in found.grid()]
    assert faults == []
    assert layers[1].data["method"] == {"use": "sgd", "lr": 0.2}
    assert layers[1].data["run"] == {"name": "n-0001"}
    assert layers[1].tree.table["method"].table["lr"].origin.line == 2
    assert "float32" not in layers[1].given  # a default is not written
    assert load(data={}).data["precision"] == {"use": "float32"}
