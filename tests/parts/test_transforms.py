"""Transforms: each against torch, or against the words of its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from curvlab.engine.state import tensors_of
from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.parts.graft import Graft
from curvlab.parts.schedules import Linear
from curvlab.parts.transforms import Clip, ClipEntries, Ema, Momentum, NormConstraint, WeightDecay
from curvlab.protocols.step import Transform
from tests.parts.vectors import LAYOUT, at, spd, vector

EACH: list[Transform] = [
    Ema(0.9),
    Ema(0.9, bias_correction=False),
    ClipEntries(0.1),
    Momentum(0.9),
    Momentum(0.9, nesterov=True),
    WeightDecay(0.1),
    Clip(0.1),
    NormConstraint(1e-3),
    Graft(),
    Graft("adam"),
    Graft("adafactor"),
]
each = pytest.mark.parametrize("part", EACH, ids=str)


@each
def test_a_borrowed_vector_is_never_changed(part: Transform) -> None:
    v = vector(1)
    kept = v.flat.clone()
    part(part.init(v), v.borrow(), at(vector(2), lr=3.0, theta=vector(3)))
    assert torch.equal(v.flat, kept)


@each
def test_a_buffer_of_the_state_is_never_handed_out_to_be_changed(part: Transform) -> None:
    state = part.init(vector())
    out = part(state, vector(1), at(vector(2), theta=vector(3)))
    kept = [t.clone() for t in tensors(state)]
    out.owned().scale_(100.0)
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), kept, strict=True))


def tensors(state: object) -> list[torch.Tensor]:
    if isinstance(state, BlockVector):
        return [state.flat]
    if isinstance(state, torch.Tensor):
        return [state]
    return tensors_of(state)


@settings(deadline=None, max_examples=25)
@given(beta=st.floats(0.0, 0.999), steps=st.integers(1, 10))
def test_the_moving_average_is_adams_bias_corrected_one(beta: float, steps: int) -> None:
    part = Ema(beta)
    state = part.init(vector())
    textbook = torch.zeros(LAYOUT.size, dtype=torch.float64)
    for t in range(1, steps + 1):
        v = vector(t)
        found = part(state, v.borrow(), at(v))
        textbook = beta * textbook + (1 - beta) * v.flat
        torch.testing.assert_close(found.flat, textbook / (1 - beta**t), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_torchs(nesterov: bool) -> None:
    part, lr = Momentum(0.8, nesterov=nesterov), 0.3
    p = nn.Parameter(torch.zeros(LAYOUT.size, dtype=torch.float64))
    sgd = torch.optim.SGD([p], lr=lr, momentum=0.8, nesterov=nesterov)
    state, mine = part.init(vector()), torch.zeros_like(p)
    for t in range(6):
        v = vector(t)
        mine = mine - lr * part(state, v.borrow(), at(v)).flat
        p.grad = v.flat.clone()
        sgd.step()
        torch.testing.assert_close(mine.detach(), p.detach())


@pytest.mark.parametrize("part", [Ema(0.9), Momentum(0.9), Momentum(0.9, nesterov=True)], ids=str)
def test_averages_take_in_factored_vectors_as_matrices(part: Transform) -> None:
    layer = BlockLayout({"l": (3, 2)})
    left, right = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    plain = BlockVector(layer, (left.mT @ right).flatten())
    states = part.init(plain), part.init(plain)
    for _ in range(3):
        factored = layer.zeros(like=left)
        factored.outers["l"] = Outer(left, right)
        found = part(states[0], factored.borrow(), at(plain))
        torch.testing.assert_close(found.flat, part(states[1], plain.borrow(), at(plain)).flat)


# weight decay: its place is its meaning


def test_weight_decay_adds_its_rate_times_the_parameters() -> None:
    v, theta = vector(1), vector(2)
    out = WeightDecay(0.1)(None, v.borrow(), at(v, theta=theta))
    torch.testing.assert_close(out.flat, v.flat + 0.1 * theta.flat)


def test_no_weight_decay_is_free() -> None:
    v = vector(1).borrow()
    assert WeightDecay(0.0)(None, v, at(v)) is v


def test_weight_decay_may_follow_a_schedule() -> None:
    v, theta = vector(1), vector(2)
    part = WeightDecay(Linear(0.0, 1.0, 4))
    for step, rate in ((0, 0.0), (2, 0.5), (9, 1.0)):
        out = part(None, v.borrow(), at(v, step=step, theta=theta))
        torch.testing.assert_close(out.flat, v.flat + rate * theta.flat)


@pytest.mark.parametrize("place", ["on the gradient", "last on the update"])
def test_weight_decay_is_sgds_or_adamws_by_where_it_stands(place: str) -> None:
    """Before momentum it is the L2 penalty of torch's SGD; behind it, decoupled: θ shrinks by lr · rate."""
    lr, rate = 0.1, 0.3
    momentum, decay = Momentum(0.9), WeightDecay(rate)
    p = nn.Parameter(vector(7).flat.clone())
    sgd = torch.optim.SGD([p], lr=lr, momentum=0.9, weight_decay=rate if place == "on the gradient" else 0.0)
    theta, state = vector(7), momentum.init(vector())
    for t in range(5):
        g = vector(t)
        here = at(g, lr=lr, theta=theta)
        if place == "on the gradient":
            u = momentum(state, decay(None, g.borrow(), here), here)
        else:
            u = decay(None, momentum(state, g.borrow(), here), here)
            with torch.no_grad():
                p.mul_(1 - lr * rate)
        p.grad = g.flat.clone()
        sgd.step()
        theta = theta.plus(u, -lr)
        torch.testing.assert_close(theta.flat, p.detach())


# bounds


@pytest.mark.parametrize("norm", [0.5, 100.0])
def test_clipping_shortens_what_is_longer_and_leaves_the_rest_alone(norm: float) -> None:
    v = vector(1)
    out = Clip(norm)(None, v.borrow(), at(v))
    assert float(out.norm()) == pytest.approx(min(norm, float(v.norm())), rel=1e-12)
    torch.testing.assert_close(out.flat / out.norm(), v.flat / v.norm())


def test_clipping_nothing_is_nothing() -> None:
    zero = LAYOUT.zeros(like=torch.zeros((), dtype=torch.float64))
    assert torch.equal(Clip(1.0)(None, zero, at(zero)).flat, zero.flat)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99),
    lr=st.floats(1e-4, 10.0),
    limit=st.floats(1e-6, 10.0),
    damping=st.floats(0.0, 10.0),
)
def test_the_norm_constraint_bounds_the_step_in_the_metric_of_the_curvature(
    seed: int, lr: float, limit: float, damping: float
) -> None:
    """For u = (C + λI)⁻¹ g: lr² uᵀ(C + λI)u ≤ limit, equal where it binds; the direction stays."""
    C = spd(seed) + damping * torch.eye(LAYOUT.size, dtype=torch.float64)
    g = vector(seed)
    u = BlockVector(LAYOUT, torch.linalg.solve(C, g.flat))
    before = lr**2 * float(u.flat @ C @ u.flat)
    part = NormConstraint(limit)
    out = part(part.init(u), u.borrow(), at(g, lr=lr))
    after = lr**2 * float(out.flat @ C @ out.flat)
    assert after == pytest.approx(min(before, limit), rel=1e-9)
    torch.testing.assert_close(out.flat / out.norm(), u.flat / u.norm())


def test_the_norm_constraints_factor_is_found_on_its_cadence_and_held_between() -> None:
    part, g = NormConstraint(1e-4, every=3), vector(1)
    state, factors = part.init(g), []
    for step in range(7):
        u = g * (1.0 + step)
        factors.append(float(part(state, u.borrow(), at(g, step=step)).norm() / u.norm()))
    assert factors[0] == pytest.approx(factors[1]) == pytest.approx(factors[2])
    assert factors[3] == pytest.approx(factors[5]) == pytest.approx(factors[0] / 2.0)  # √4 at step 3
    assert factors[6] < factors[3]


def test_an_update_against_the_gradient_is_left_alone_by_the_norm_constraint() -> None:
    g = vector(1)
    part = NormConstraint(1e-9)
    assert torch.equal(part(part.init(g), (g * -1.0).borrow(), at(g)).flat, -g.flat)


def test_an_average_without_correction_begins_at_zero() -> None:
    part, expected = Ema(0.9, bias_correction=False), torch.zeros_like(vector().flat)
    state = part.init(vector())
    for k in range(5):
        expected = 0.9 * expected + 0.1 * vector(k).flat
        torch.testing.assert_close(part(state, vector(k), at(vector(k))).flat, expected)


def test_entries_are_in_units_of_the_scale_and_no_longer_than_one() -> None:
    part = ClipEntries(0.5)
    found = part(part.init(vector()), vector(1), at(vector(2))).flat
    torch.testing.assert_close(found, (vector(1).flat / 0.5).clamp(-1, 1))
