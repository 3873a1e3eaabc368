"""Step rules, on quadratics whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from curvlab.linalg.vectors import BlockVector
from curvlab.parts.schedules import Linear
from curvlab.parts.steps import Armijo, Grid, QuadraticModel, Rate
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from tests.parts.vectors import LAYOUT, Bowl, spd, vector


def bowl(seed: int = 0) -> Bowl:
    return Bowl(spd(seed), vector(seed))


def rank_one(b: BlockVector) -> Bowl:
    """No curvature but along the first coordinate."""
    H = torch.zeros(LAYOUT.size, LAYOUT.size, dtype=torch.float64)
    H[0, 0] = 1.0
    return Bowl(H, b)


def test_a_rate_is_taken_as_it_is_times_what_the_scheduler_says() -> None:
    b = bowl()
    step = Rate(0.2).search(None, b.line(b.gradient, rate=0.5), 0)
    assert (step.alpha, step.accepted) == (0.1, True)
    assert b.trials == b.H.count == 0
    assert Rate(0.2).needs(0) == GRADIENT_ONLY


@pytest.mark.parametrize(
    "rule", [Rate(Linear(1.0, 0.0, 4)), Armijo(Linear(1.0, 0.0, 4)), QuadraticModel(Linear(1.0, 0.0, 4))]
)
def test_rates_may_follow_a_schedule(rule: Rate | Armijo | QuadraticModel) -> None:
    assert [rule.rate(step) for step in (0, 2, 4, 9)] == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("lr", [1e-3, 1.0, 300.0])
def test_backtracking_finds_the_first_rate_with_enough_decrease(lr: float) -> None:
    b, part = bowl(), Armijo(lr=lr, slope=0.1, shrink=0.3)
    line = b.line(b.gradient)
    step = part.search(None, line, 0)
    assert step.accepted
    assert b.loss(step.update, step.alpha) <= 0.1 * step.alpha * line.slope
    if step.alpha < lr:
        longer = step.alpha / 0.3
        assert b.loss(step.update, longer) > 0.1 * longer * line.slope


def searched(part: Grid, line: Line, last: int = 0) -> tuple[Step, int]:
    """A step, and where it was found."""
    state = part.init(vector())
    state.last = last
    return part.search(state, line, 0), state.last


@pytest.mark.parametrize("near", [False, True])
def test_a_grid_takes_the_best_of_all_its_rates(near: bool) -> None:
    """Of a bowl's, which has one valley, the one nearest to the minimum, no first that is good enough."""
    b, part = bowl(), Grid(lr=64.0, shrink=0.5, count=12, near=near)
    rates = [64.0 * 0.5**k for k in range(12)]
    losses = [b.loss(b.gradient, alpha) for alpha in rates]
    best = losses.index(min(losses))
    assert 0 < best < 11
    for last in (0, best, 11):
        step, place = searched(part, b.line(b.gradient), last)
        assert step.accepted
        assert (step.alpha, place) == (rates[best], best)
    assert part.needs(0) == Needs(losses=12)


@pytest.mark.parametrize(("near", "last", "trials"), [(False, 3, 12), (True, None, 3), (True, 0, None)])
def test_a_grid_pays_for_what_it_looks_at(near: bool, last: int | None, trials: int | None) -> None:
    """All of it, or the last place and its neighbors; each once."""
    b, tried = bowl(), []
    part = Grid(lr=64.0, shrink=0.5, count=12, near=near)
    _, best = searched(part, b.line(b.gradient))

    def loss_of(update: BlockVector, alpha: float) -> float:
        tried.append(alpha)
        return b.loss(update, alpha)

    searched(part, replace(b.line(b.gradient), losses=loss_of), best if last is None else last)
    assert len(tried) == (best + 2 if trials is None else trials)


@pytest.mark.parametrize("near", [False, True])
def test_a_grid_without_a_better_loss_does_not_move(near: bool) -> None:
    b = bowl()
    for line in (b.line(b.gradient * -1.0), b.line(b.gradient * 0.0)):
        step, place = searched(Grid(near=near), line, 5)
        assert (step.alpha, step.accepted, place) == (0.0, False, 5)


@pytest.mark.parametrize("near", [False, True])
def test_a_grid_passes_over_losses_that_are_not_finite(near: bool) -> None:
    b = bowl()
    line = replace(
        b.line(b.gradient), losses=lambda u, alpha: b.loss(u, alpha) if alpha < 0.3 else float("nan")
    )
    step, _ = searched(Grid(lr=1.0, near=near), line)
    assert step.accepted
    assert step.alpha < 0.3
    nowhere = replace(line, losses=lambda u, alpha: float("inf"))
    assert not searched(Grid(near=near), nowhere)[0].accepted


def test_a_walk_that_ends_in_a_ditch_above_the_start_looks_everywhere() -> None:
    """Two valleys, of which the one near the last place is not deep enough."""
    b = bowl()
    heights = {0: 5.0, 1: 3.0, 2: 4.0, 3: 9.0, 4: 0.5, 5: 2.0}
    by_rate = {0.5**k: height for k, height in heights.items()}
    line = replace(b.line(b.gradient), losses=lambda u, alpha: by_rate[alpha], loss=1.0)
    step, place = searched(Grid(count=6, near=True), line)
    assert (step.alpha, place) == (0.5**4, 4)


def test_a_grid_begins_at_the_schedulers_rate() -> None:
    b = bowl()
    steps = [searched(Grid(lr=1.0, count=1), b.line(b.gradient, rate=r))[0] for r in (0.02, 0.01)]
    assert [step.alpha for step in steps] == [0.02, 0.01]


def test_backtracking_spends_at_most_the_losses_it_asked_for() -> None:
    b, part = bowl(), Armijo(lr=1e9, tries=7)
    step = part.search(None, b.line(b.gradient), 0)
    assert not step.accepted
    assert b.trials == 7
    assert part.needs(0) == Needs(losses=7)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_along_what_does_not_descend_nothing_is_tried_and_nothing_moves(factor: float) -> None:
    b = bowl()
    step = Armijo().search(None, b.line(b.gradient * factor), 0)
    assert (step.alpha, step.accepted, b.trials) == (0.0, False, 0)


def test_the_quadratic_model_alone_takes_the_minimizer_along_the_update() -> None:
    b, part = bowl(), QuadraticModel(momentum=False)
    u = b.gradient
    step = part.search(part.init(u), b.line(u), 0)
    best = float(b.gradient.dot(u)) / float(u.dot(b.H @ u))
    torch.testing.assert_close(step.update.flat, best * u.flat)
    assert (step.alpha, step.accepted) == (1.0, True)


def test_with_momentum_it_takes_the_minimizer_over_both_directions() -> None:
    b, part = bowl(), QuadraticModel()
    state = part.init(b.gradient)
    state.previous.copy_(vector(5))
    damping = 0.7
    step = part.search(state, b.line(b.gradient, damping=damping), 0)
    damped = b.H.matrix + damping * torch.eye(LAYOUT.size, dtype=torch.float64)
    residual = damped @ step.update.flat - b.gradient.flat
    for direction in (b.gradient, vector(5)):
        assert float(residual @ direction.flat) == pytest.approx(0.0, abs=1e-9)


def test_momentum_along_a_quadratic_is_conjugate_gradients() -> None:
    """With the model's rate and momentum a quadratic is solved in as many steps as dimensions."""
    b, part = bowl(), QuadraticModel()
    theta, state = vector(3), part.init(b.b)
    for _ in range(LAYOUT.size):
        here = Bowl(b.H.matrix, b.b.plus(b.H @ theta, -1.0))
        step = part.search(state, here.line(here.gradient), 0)
        theta = theta.plus(step.update, -step.alpha)
    torch.testing.assert_close(theta.flat, torch.linalg.solve(b.H.matrix, b.b.flat), rtol=1e-6, atol=1e-6)


def test_the_displacement_it_remembers_is_the_one_that_was_made() -> None:
    b, part = bowl(), QuadraticModel(lr=0.5)
    state = part.init(b.gradient)
    step = part.search(state, b.line(b.gradient, rate=0.5), 0)
    assert step.alpha == 0.25
    torch.testing.assert_close(state.previous.flat, 0.25 * step.update.flat)


def test_two_equal_directions_are_one() -> None:
    b, part = bowl(), QuadraticModel()
    state = part.init(b.gradient)
    state.previous.copy_(b.gradient * 3.0)
    step = part.search(state, b.line(b.gradient), 0)
    alone = QuadraticModel(momentum=False).search(part.init(b.gradient), b.line(b.gradient), 0)
    torch.testing.assert_close(step.update.flat, alone.update.flat)


def test_an_undamped_model_has_no_damping() -> None:
    b = bowl()
    found = [
        part.search(part.init(b.gradient), b.line(b.gradient, damping=damping), 0)
        for part, damping in ((QuadraticModel(damped=False), 0.7), (QuadraticModel(), 0.0))
    ]
    assert torch.equal(found[0].update.flat, found[1].update.flat)


@pytest.mark.parametrize("lowered", [0, 3])
def test_with_tries_the_first_half_that_lowers_the_loss_is_taken(lowered: int) -> None:
    """The displacement that the next step knows is the shorter one."""
    b, part = bowl(), QuadraticModel(tries=5)
    state, tried = part.init(b.gradient), list[float]()

    def losses(u: BlockVector, alpha: float) -> float:
        tried.append(alpha)
        return 1.0 if alpha > 0.5**lowered else 0.0

    line = replace(b.line(b.gradient), losses=losses, loss=0.5)
    step = part.search(state, line, 0)
    assert (step.accepted, step.alpha) == (True, 0.5**lowered)
    assert tried == [0.5**k for k in range(lowered + 1)]
    assert part.needs(0) == Needs(products=2, losses=5)
    assert state.previous is not None
    torch.testing.assert_close(state.previous.flat, 0.5**lowered * step.update.flat)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 0.5])
def test_without_a_lower_loss_nothing_moves_and_no_momentum_is_left(loss: float) -> None:
    b, part = bowl(), QuadraticModel(tries=5)
    state = part.init(b.gradient)
    assert state.previous is not None
    state.previous.copy_(vector(5))
    line = replace(b.line(b.gradient), losses=lambda u, alpha: loss, loss=0.5)
    step = part.search(state, line, 0)
    assert (step.accepted, step.alpha) == (False, 0.0)
    assert float(state.previous.norm()) == 0.0


@pytest.mark.parametrize("momentum", [True, False])
def test_it_asks_for_the_products_it_makes(momentum: bool) -> None:
    b, part = bowl(), QuadraticModel(momentum=momentum)
    state = part.init(b.gradient)
    for step in range(2):
        b.H.count = 0
        part.search(state, b.line(b.gradient), step)
    assert part.needs(1) == Needs(products=b.H.count)


def test_where_the_model_is_flat_or_not_finite_the_step_is_rejected() -> None:
    b = rank_one(vector(1))
    flat = vector(2)
    flat.flat[0] = 0.0
    for update in (flat, flat * float("nan")):
        part = QuadraticModel()
        state = part.init(update)
        step = part.search(state, b.line(update), 0)
        assert (step.alpha, step.accepted) == (0.0, False)
        assert torch.equal(state.previous.flat, torch.zeros(LAYOUT.size, dtype=torch.float64))
