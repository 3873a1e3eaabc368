"""What keeps the factors in hand: the bound on their steps, the scale that they start with, narrow dtypes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.protocols.structure import Family, Group
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from plugins.singd.tests.bare import IKFAC, INGD, factors, named, optimizer, rules, singd
from plugins.singd.tests.hand_fed import Fed, average, eye, moments, rows
from tests.limits.registered import families

OUT, IN, N = 4, 6, 9

both_families = pytest.mark.parametrize("family", [Dense(), Diagonal()], ids=str)

#: what one bad batch may do to a layer's inputs
OUTLIER = 1e6


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(rows(N, IN, seed=k), rows(N, OUT, seed=100 + k)) for k in range(count)]


# the bound


@rules
@both_families
@pytest.mark.parametrize("limit", [0.5, 0.01])
@pytest.mark.parametrize("scale", [1.0, OUTLIER])
def test_no_step_is_longer_than_the_limit(
    family: Family, rule: dict[str, Any], limit: float, scale: float
) -> None:
    """‖β m‖_F = ‖I − K⁻¹ K_new‖_F, whatever is observed, momentum included."""
    fed, longest = Fed(singd(family, limit=limit, **rule), OUT, IN, damping=0.05), 0.0
    for a, g in batches(10):
        K, C = fed.K, fed.C
        fed.see(scale * a, g)
        for old, new in ((K, fed.K), (C, fed.C)):
            change = torch.linalg.solve(old, new) - eye(len(old))
            longest = max(longest, float(change.norm()))
    assert longest <= limit * (1 + 1e-9)
    if scale == OUTLIER:
        assert longest >= limit * (1 - 1e-9), "the limit did not bind"


@rules
def test_where_the_limit_does_not_bind_it_changes_nothing(rule: dict[str, Any]) -> None:
    free, bound = (Fed(singd(limit=limit, lr=0.01, **rule), OUT, IN) for limit in (math.inf, 0.5))
    for a, g in batches(10):
        free.see(a, g)
        bound.see(a, g)
    assert torch.equal(free.K, bound.K)
    assert torch.equal(free.C, bound.C)


def after_an_outlier(rule: dict[str, Any], later: int, **settings: Any) -> Fed:
    """Three ordinary batches, one whose inputs are far too large, and ``later`` ordinary ones."""
    fed = Fed(singd(**rule, **settings), OUT, IN, damping=0.05)
    for k, (a, g) in enumerate(batches(4)):
        fed.see(a * (OUTLIER if k == 3 else 1.0), g)
    for k in range(later):
        fed.see(*batches(4)[k % 4])
    return fed


def sound(fed: Fed) -> bool:
    """Finite, and on the side of the identity: no direction was turned round."""
    return all(
        bool(torch.isfinite(M).all()) and float(torch.linalg.det(M)) > 0 for M in (fed.K, fed.C)
    ) and all(float(torch.linalg.eigvals(M).real.min()) > 0 for M in (fed.K, fed.C))


@rules
def test_one_bad_batch_breaks_the_plain_rule(rule: dict[str, Any]) -> None:
    """It turns directions round at once, and ends in numbers that are none."""
    assert not sound(after_an_outlier(rule, 0))
    later = after_an_outlier(rule, 20)
    assert not bool(torch.isfinite(later.K).all() and torch.isfinite(later.C).all())


@rules
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("later", [0, 20])
def test_one_bad_batch_does_not_break_the_bounded_rule(rule: dict[str, Any], order: int, later: int) -> None:
    assert sound(after_an_outlier(rule, later, limit=0.5, order=order))


@rules
def test_after_a_bad_batch_the_bounded_factors_find_back(rule: dict[str, Any]) -> None:
    """To where they would be without it; a momentum keeps the outlier in mind, so it is left out here."""
    rule = {**rule, "momentum": 0.0, "lr": 0.2, "limit": 0.5}
    hurt, whole = after_an_outlier(rule, 120), Fed(singd(**rule), OUT, IN, damping=0.05)
    for k in range(120):
        whole.see(*batches(4)[k % 4])
    v = normal(OUT, IN, seed=7)
    apart = (hurt.direction(v) - whole.direction(v)).norm() / whole.direction(v).norm()
    assert float(apart) < 1e-3


@pytest.mark.parametrize("lr", [0.5, 3.0, 100.0])
def test_the_second_order_turns_nothing_round_whatever_the_rate(lr: float) -> None:
    """1 − x + x²/2 is positive for every x, 1 − x is not."""
    signs = {}
    for order in (1, 2):
        fed = Fed(singd(lr=lr, order=order, **IKFAC), OUT, IN, damping=0.05)
        fed.see(*(5 * x for x in batches(1)[0]))  # from I: K is a function of a symmetric matrix
        signs[order] = float(torch.linalg.eigvalsh(fed.K).min()) > 0
    assert signs == {1: False, 2: True}


# the start


@rules
@both_families
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_scaled_start_makes_the_first_step_one_of_mean_zero(
    family: Family, rule: dict[str, Any], scale: float
) -> None:
    """Nothing is left to do for the factors' common scale: K's mean stays where the start put it."""
    a, g = batches(1)[0]
    start, moved = (Fed(singd(family, start="scaled", lr=lr, **rule), OUT, IN, 0.05) for lr in (0.0, 0.1))
    for fed in (start, moved):
        fed.see(scale * a, g)
    for side in ("K", "C"):
        s, M = getattr(start, side), getattr(moved, side)
        assert_close(s, average(s) * eye(len(s)), dimension=N)
        assert float(average(M)) == pytest.approx(float(average(s)), rel=1e-9)
        assert float((M - s).norm()) > 1e-7 * float(s.norm())


@pytest.mark.parametrize("c", [30.0, 1e-3])
@pytest.mark.parametrize(("rule", "damping"), [(INGD, 0.05), (IKFAC, 0.0)], ids=["INGD", "IKFAC, undamped"])
def test_a_loss_in_other_units_gives_the_step_in_those_units(
    rule: dict[str, Any], damping: float, c: float
) -> None:
    """L → cL: gradients c, curvature c², so with λ → c²λ the direction is 1/c of what it was, at once.

    Not from the identity, where it takes the factors some time to find their scale; and not for IKFAC
    with damping, which it adds to each factor.
    """
    v = normal(OUT, IN, seed=7)
    for start, holds in (("scaled", True), ("identity", False)):
        one = Fed(singd(start=start, **rule), OUT, IN, damping)
        other = Fed(singd(start=start, **rule), OUT, IN, c * c * damping)
        for k, (a, g) in enumerate(batches(10)):
            one.see(a, g)
            other.see(a, c * g)
            found, expected = other.direction(c * v), one.direction(v) / c
            if holds:
                assert_close(found, expected, dimension=N * IN, condition=10.0, what=f"step {k}")
        assert holds or not bool(torch.isclose(found, expected, rtol=0.1).all())


@rules
def test_a_scaled_start_happens_once(rule: dict[str, Any]) -> None:
    """The second observation is the rule's own."""
    fed = Fed(singd(start="scaled", lr=0.0, **rule), OUT, IN, damping=0.05)
    (a, g), *_ = batches(1)
    fed.see(a, g)
    K = fed.K
    fed.see(10 * a, g)
    assert torch.equal(fed.K, K)


@rules
def test_nothing_observed_and_no_damping_leave_the_start_at_the_identity(rule: dict[str, Any]) -> None:
    fed = Fed(singd(start="scaled", lr=0.0, **rule), OUT, IN)
    fed.see(torch.zeros(N, IN).double(), torch.zeros(N, OUT).double())
    assert torch.equal(fed.K, eye(IN))
    assert torch.equal(fed.C, eye(OUT))


def test_a_scaled_start_is_where_the_product_has_the_size_of_the_inverse() -> None:
    """(s_K s_C)² = 1/(avg U_K · avg U_C + λ): the scalar that answers the mean curvature."""
    fed, (a, g) = Fed(singd(start="scaled", lr=0.0, **INGD), OUT, IN, damping=0.05), batches(1)[0]
    fed.see(a, g)
    size = float((average(fed.K) * average(fed.C)) ** 2)
    assert size == pytest.approx(1 / float(average(moments(a)) * average(moments(g)) + 0.05), rel=1e-9)


# narrow dtypes


def one_of_each_kind() -> list[Family]:
    """One family of every class that is closed under products."""
    return list({type(f): f for f in families() if isinstance(f, Group)}.values())


@pytest.mark.parametrize(
    ("family", "rule", "dtype"),
    [
        *((f, INGD, torch.bfloat16) for f in one_of_each_kind()),
        (Dense(), IKFAC, torch.bfloat16),
        *((Dense(), rule, dtype) for rule in (INGD, IKFAC) for dtype in (torch.float32, torch.float64)),
    ],
    ids=named,
)
def test_fifty_steps_in_every_dtype(family: Family, rule: dict[str, Any], dtype: torch.dtype) -> None:
    """Finite and downhill; every state in the dtype of its parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    part = singd(family, family, lr=0.1, limit=0.5, start="scaled", **rule)
    ours = optimizer(model, part, lr=0.02, damping=0.1, momentum=0.5)
    x = normal(32, 6, seed=1)
    y, losses = (x @ normal(6, 3, seed=2)).argmax(-1), []
    for _ in range(50):
        ours.zero_grad()
        loss = nn.functional.cross_entropy(model(x.to(dtype)).float(), y)
        loss.backward()
        ours.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    for f in factors(ours).values():
        for member in (f.K, f.C, f.m_K, f.m_C):
            for tensor in {} if member is None else member.tensors().values():
                assert tensor.dtype == dtype
                assert bool(torch.isfinite(tensor).all())
