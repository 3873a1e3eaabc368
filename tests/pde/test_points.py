"""Points lie where their sets say, and are those of their seed alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvlab import pde
from curvlab.pde.points import Design
from tests.pde.problems import POINTS, problem

BOX = {"x": (0.0, 1.0), "y": (-2.0, 3.0), "t": (1.0, 1.5)}
LOW, HIGH = torch.tensor(list(BOX.values()), dtype=torch.float64).mT


def drawn(points: pde.Points, seed: int = 0) -> Tensor:
    return points.draw(BOX, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("design", ["uniform", "latin-hypercube", "grid"])
def test_points_inside_fill_the_box(design: Design) -> None:
    points = pde.Inside(70, design)
    x = drawn(points)
    assert len(x) == (64 if design == "grid" else 70)
    assert bool(((x > LOW) & (x < HIGH)).all())
    assert torch.equal(drawn(points), x)
    assert torch.equal(drawn(points, 1), x) == (not points.moving) == (design == "grid")
    cells = ((x - LOW) / (HIGH - LOW) * (4 if design == "grid" else 70)).floor().long()
    if design == "latin-hypercube":  # one in each of 70 slices of every coordinate
        assert all(column.sort().values.tolist() == list(range(70)) for column in cells.mT)
    if design == "grid":
        assert len({tuple(row) for row in cells.tolist()}) == 64


def test_faces_have_the_values_of_their_sides() -> None:
    x = drawn(pde.Face("y", -2.0, 20))
    assert bool((x[:, 1] == -2.0).all())
    assert bool(((x[:, [0, 2]] > LOW[[0, 2]]) & (x[:, [0, 2]] < HIGH[[0, 2]])).all())
    x = drawn(pde.Faces(26))
    on = torch.cat([x == LOW, x == HIGH], 1)
    assert on.sum(1).tolist() == [1] * 26
    assert sorted(on.sum(0).tolist()) == [4, 4, 4, 4, 5, 5]
    x = drawn(pde.Faces(26, ("t",)))
    assert sorted(x[:, 2].unique().tolist()) == [1.0, 1.5]
    assert not bool(((x == LOW) | (x == HIGH))[:, :2].any())
    assert len(drawn(pde.Face("y", 0.0, 10, "grid"))) == 9


def test_one_coordinate_has_two_faces() -> None:
    box = {"x": (0.0, 2.0)}
    generator = torch.Generator().manual_seed(0)
    assert pde.Faces(3).draw(box, generator).tolist() == [[0.0], [2.0], [0.0]]
    assert pde.Face("x", 2.0, 2).draw(box, generator).tolist() == [[2.0], [2.0]]


def test_adaptive_points_go_where_the_residual_is_large() -> None:
    points = pde.Adaptive(400, floor=0.0)
    first = drawn(points)
    assert torch.equal(drawn(points), first)
    assert abs(float(first[:, 0].mean()) - 0.5) < 0.06  # uniform without residuals
    generator = torch.Generator().manual_seed(0)
    moved = points.draw(BOX, generator, lambda x: x[:, 0] ** 3)
    assert abs(float(moved[:, 0].mean()) - 0.8) < 0.06  # the density is 4 x³, less what a pool of ten lacks
    flat = pde.Adaptive(400, power=1.0, floor=1e6).draw(BOX, generator, lambda x: x[:, 0] ** 3)
    assert abs(float(flat[:, 0].mean()) - 0.5) < 0.06
    sharp = pde.Adaptive(400, power=4.0, floor=0.0).draw(BOX, generator, lambda x: x[:, 0])
    assert float(sharp[:, 0].mean()) > float(moved[:, 0].mean())
    assert bool(((moved > LOW) & (moved < HIGH)).all())
    assert len(moved.unique(dim=0)) == 400


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_adaptive_points_are_drawn_whatever_the_residual(value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    found = pde.Adaptive(50, floor=0.0).draw(BOX, generator, lambda x: torch.full_like(x[:, 0], value))
    assert found.shape == (50, 3)


def test_points_of_a_problem_are_those_of_its_seed_and_term() -> None:
    made = problem()
    first, again, other = made.draw(0), made.draw(0), made.draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [torch.equal(a, b) for a, b in zip(first, other, strict=True)] == [False, False, True]
    assert torch.equal(first[2], POINTS)
    assert not torch.equal(first[0][:6], first[1])
    test = made.test_points(7)
    assert not torch.equal(test, first[0])


def test_rows_hold_points_data_weight_and_term() -> None:
    made = problem()
    points = made.draw()
    rows = made.rows(points, torch.empty(0, dtype=torch.float32))
    assert rows.dtype == torch.float32
    assert rows[:, -1].tolist() == [0.0] * 7 + [1.0] * 6 + [2.0] * 4
    exact = made.rows(points)
    assert torch.equal(exact[:, :3], torch.cat(points))
    assert torch.equal(exact[13:, 3], POINTS.sum(1))
    assert not exact[:13, 3].any()
    weights = [(w * 17 / (2 * n)) ** 0.5 for w, n in ((0.5, 7), (3.0, 6), (1.0, 4))]
    assert exact[[0, 7, 13], 4].tolist() == pytest.approx(weights)
    some = made.weighted(exact[[0, 1, 7, 13]])
    fewer = [(w * 4 / (2 * n)) ** 0.5 for w, n in ((0.5, 2), (3.0, 1), (1.0, 1))]
    assert some[[0, 2, 3], 4].tolist() == pytest.approx(fewer)
