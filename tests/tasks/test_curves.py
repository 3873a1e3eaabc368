"""Curves: what is drawn, and that six numbers say all of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvlab.tasks.curves import MARGIN, PEN, PIXELS, SIDE, Curves, drawn, points, traced
from curvlab.tasks.draws import Uniform


def picture(through: list[list[float]]) -> Tensor:
    return drawn(torch.tensor([through], dtype=torch.float64)).view(SIDE, SIDE)


def test_a_curve_passes_through_its_three_points() -> None:
    through = points(Uniform(0), 50)
    at, _ = traced(through)
    reached = torch.cdist(through, at).amin(2)
    # strokes stand in the middle of their piece, so an end is half a piece away
    assert float(reached.max()) < PEN


def test_no_curve_leaves_the_image() -> None:
    """A parabola goes beyond its points by an eighth of their range at most; the worst case is in here."""
    corners = torch.cartesian_prod(*(torch.tensor([MARGIN, SIDE / 2, SIDE - MARGIN]),) * 6).view(-1, 3, 2)
    at, _ = traced(torch.cat([corners, points(Uniform(1), 2000)]))
    assert float(at.min()) > 3 * PEN
    assert float(at.max()) < SIDE - 3 * PEN


def test_the_length_of_a_straight_curve_is_the_distance_of_its_ends() -> None:
    _, length = traced(torch.tensor([[[5.0, 5.0], [9.0, 8.0], [13.0, 11.0]]]))
    assert float(length.sum()) == pytest.approx(10.0)


def test_strokes_are_close_enough_for_an_even_line() -> None:
    _, length = traced(points(Uniform(2), 5000))
    assert float(length.max()) < 1.5 * PEN


def test_a_straight_line_is_white_within_and_fades_across_as_the_pen_does() -> None:
    image = picture([[6.5, 14.5], [14.5, 14.5], [22.5, 14.5]])
    inside = image[:, 10:19]
    assert inside[14].tolist() == pytest.approx([1.0] * 9, abs=1e-3)
    for away in (1, 2):
        expected = [math.exp(-0.5 * (away / PEN) ** 2)] * 9
        assert inside[14 + away].tolist() == pytest.approx(expected, abs=1e-3)
        assert inside[14 - away].tolist() == pytest.approx(expected, abs=1e-3)


def test_columns_are_the_first_coordinate_and_rows_the_second() -> None:
    image = picture([[6.0, 20.0], [7.0, 21.0], [8.0, 22.0]])
    row, column = divmod(int(image.argmax()), SIDE)
    assert 6 <= column <= 8
    assert 20 <= row <= 22


def test_a_shifted_curve_is_a_shifted_image() -> None:
    """Lines are soft enough for pixels: the center of mass moves as the points do, by eighths of a pixel."""
    through = [[8.2, 9.1], [14.0, 17.3], [18.6, 10.4]]
    shifts = [k / 8 for k in range(9)]
    columns = torch.arange(SIDE) + 0.5
    masses = []
    for shift in shifts:
        image = picture([[x + shift, y] for x, y in through])
        masses.append(float((image.sum(0) * columns).sum() / image.sum()))
    moved = [m - masses[0] for m in masses]
    assert moved == pytest.approx(shifts, abs=0.02)


def test_pixels_lie_between_black_and_white_even_where_a_curve_meets_itself() -> None:
    images = drawn(points(Uniform(3), 300))
    assert images.shape == (300, PIXELS)
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0
    assert float(images.max()) == 1.0
    assert 0.02 < float(images.mean()) < 0.1
    assert float(images.amax(1).min()) > 0.2  # none is empty


def test_images_are_the_same_however_many_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    through = points(Uniform(4), 10)
    whole = drawn(through)
    monkeypatch.setattr("curvlab.tasks.curves.CHUNK", 3)
    torch.testing.assert_close(drawn(through), whole)


def test_a_seed_gives_one_problem_whose_parts_differ() -> None:
    def made(**settings: int) -> tuple[Tensor, Tensor]:
        task = Curves(size=20, validation_size=20, **settings)
        work = task.workload(torch.nn.Linear(1, 1), dtype=torch.float32, device=torch.device("cpu"))
        return tuple(part.rows(torch.arange(20))[0] for part in (work.training, work.validation))

    training, validation = made()
    assert all(torch.equal(a, b) for a, b in zip(made(), (training, validation), strict=True))
    assert not torch.equal(training, validation)
    assert not torch.equal(made(data_seed=1)[0], training)


def test_the_network_is_that_of_the_literature() -> None:
    with torch.device("meta"):
        model = Curves().model()
    widths = [m.in_features for m in model if isinstance(m, torch.nn.Linear)]
    assert widths == [784, 400, 200, 100, 50, 25, 6, 25, 50, 100, 200, 400]
    assert sum(p.numel() for p in model.parameters()) == 842_340
    kinds = [type(m).__name__ for m in model]
    assert kinds.count("Sigmoid") == 10  # eleven hidden layers, of which the code is linear
    assert kinds[kinds.index("Linear", 10) + 1] == "Linear"


def test_an_autoencoder_learns_curves() -> None:
    torch.manual_seed(0)
    task = Curves(hidden=(64,), size=500, validation_size=200)
    work = task.workload(task.model(), dtype=torch.float32, device=torch.device("cpu"))
    optimizer = torch.optim.Adam(work.model.parameters(), lr=1e-2)
    images, _ = work.validation.rows(torch.arange(200))
    without = float(((images - images.mean(0)) ** 2).sum(1).mean())  # what no code at all leaves
    inputs, targets = work.training.rows(torch.arange(500))
    for _ in range(200):
        optimizer.zero_grad()
        work.loss.mean(work.model(inputs), targets).backward()
        optimizer.step()
    assert work.metrics()["val_error"] < 0.8 * without
