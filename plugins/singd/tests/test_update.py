"""The inverse-free update against formulas: as they are written, entry by entry, and at its fixed points."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.protocols.structure import Family, Group
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab_singd.singd import PEAK_EVERY
from curvlab_structures.block_diagonal import BlockDiagonal
from plugins.singd.tests.bare import IKFAC, INGD, PEAK, named, rules, singd
from plugins.singd.tests.hand_fed import (
    Fed,
    Written,
    average,
    eye,
    largest,
    moments,
    over_mean,
    rows,
    whitened,
)
from tests.limits.registered import families

OUT, IN, N = 4, 6, 9

#: families closed under products that are vector spaces; each as K's and as C's
GROUPS = [f for f in families() if isinstance(f, Group)]

orders = pytest.mark.parametrize("order", [1, 2])


def batches(count: int, o: int = OUT, i: int = IN) -> list[tuple[Tensor, Tensor]]:
    return [(rows(N, i, seed=k), rows(N, o, seed=100 + k)) for k in range(count)]


# as it is written


@pytest.mark.parametrize(
    ("family", "rule", "order", "limit"),
    [
        *((f, IKFAC, 1, math.inf) for f in GROUPS),
        *((f, PEAK, 2, 0.02) for f in GROUPS),
        *(
            (Dense(), rule, order, limit)
            for rule in (INGD, PEAK, IKFAC)
            for order, limit in ((1, math.inf), (2, math.inf), (1, 0.02))
        ),
    ],
    ids=named,
)
@pytest.mark.filterwarnings("ignore::curvlab.protocols.structure.NaiveFallback")
def test_thirteen_updates_are_those_of_the_formulas(
    family: Family, rule: dict[str, Any], order: int, limit: float
) -> None:
    """K and C lose their symmetry on the way, so that a transpose forgotten anywhere is found."""
    settings: dict[str, Any] = {"lr": 0.1, "order": order, "limit": limit, **rule}
    fed = Fed(singd(family, family, **settings), OUT, IN, damping=0.05)
    written = Written(
        family.at(IN),
        family.at(OUT),
        eye(IN),
        eye(OUT),
        0.05,
        0.1,
        rule["momentum"],
        rule["coupling"],
        order,
        limit,
    )
    for a, g in batches(13):  # the peak is measured anew after ten
        fed.see(a, g)
        written.see(a, g)
    pairs = [(fed.K, written.K), (fed.C, written.C)]
    if rule["momentum"]:
        m_K, m_C = fed.factors.m_K, fed.factors.m_C
        assert m_K is not None
        assert m_C is not None
        pairs += [(m_K.dense(), written.m_K), (m_C.dense(), written.m_C)]
    for found, expected in pairs:
        assert_close(found, expected, dimension=IN * IN, condition=10.0, what=str(family))
    v = normal(OUT, IN, seed=7)
    expected = written.C @ written.C.mT @ v @ written.K @ written.K.mT
    assert_close(fed.direction(v), expected, dimension=IN * IN, condition=10.0, what=str(family))


def test_dense_factors_do_lose_their_symmetry() -> None:
    fed = Fed(singd(Dense(), lr=0.1), OUT, IN, damping=0.05)
    for a, g in batches(10):
        fed.see(a, g)
    assert float((fed.K - fed.K.mT).abs().max()) > 1e-3


@rules
def test_a_diagonal_factor_is_a_vector_of_numbers(rule: dict[str, Any]) -> None:
    alpha, beta, lam = rule["momentum"], 0.1, 0.05
    fed = Fed(singd(Diagonal(), lr=beta, **rule), OUT, IN, damping=lam)
    k, c = torch.ones(IN, dtype=DTYPE), torch.ones(OUT, dtype=DTYPE)
    m_k, m_c, both = torch.zeros_like(k), torch.zeros_like(c), 1.0
    for step, (a, g) in enumerate(batches(20)):
        h_k, h_c = k**2 * (a**2).mean(0), c**2 * (g**2).mean(0)
        if rule["coupling"] != "none":
            H_K, H_C = k[:, None] * moments(a) * k, c[:, None] * moments(g) * c  # all of it, for the peak
            if rule["coupling"] == "peak" and step % PEAK_EVERY == 0:
                both = float(over_mean(H_K) * over_mean(H_C)) ** 0.5
            s_k = both * h_c.mean() * h_k + lam * (c**2).mean() * k**2 - 1
            s_c = both * h_k.mean() * h_c + lam * (k**2).mean() * c**2 - 1
        else:
            s_k, s_c = h_k + lam * k**2 - 1, h_c + lam * c**2 - 1
        m_k, m_c = alpha * m_k + s_k / 2, alpha * m_c + s_c / 2
        k, c = k - beta * k * m_k, c - beta * c * m_c
        fed.see(a, g)
    assert_close(fed.K, torch.diag(k), dimension=N)
    assert_close(fed.C, torch.diag(c), dimension=N)
    v = normal(OUT, IN, seed=7)
    assert_close(fed.direction(v), (c**2)[:, None] * v * k**2, dimension=N)


# fixed points


@orders
@rules
@pytest.mark.parametrize(("u", "v", "lam"), [(2.0, 0.5, 0.1), (0.3, 4.0, 0.0), (1e-3, 1e-2, 1.0)])
def test_of_a_number_the_fixed_point_is_the_inverse(
    rule: dict[str, Any], u: float, v: float, lam: float, order: int
) -> None:
    """(K C)² = 1/(u v + λ): adaptive damping is of the product; IKFAC damps each factor."""
    fed = Fed(singd(lr=0.2, order=order, **rule), 1, 1, damping=lam)
    a, g = (torch.full((3, 1), math.sqrt(x), dtype=DTYPE) for x in (u, v))
    for _ in range(250):
        fed.see(a, g)
    expected = 1 / (u * v + lam) if rule["coupling"] != "none" else 1 / ((u + lam) * (v + lam))
    assert float((fed.K * fed.C) ** 2) == pytest.approx(expected, rel=1e-9)


@orders
def test_ikfac_rests_where_K_is_a_root_of_the_damped_inverse(order: int) -> None:
    fed, (a, g) = Fed(singd(lr=0.2, order=order, **IKFAC), OUT, IN, damping=0.05), batches(1)[0]
    for _ in range(300):
        fed.see(a, g)
    for P, U in zip(fed.P, (moments(a), moments(g)), strict=True):
        assert_close(P @ (U + 0.05 * eye(len(U))), eye(len(U)), dimension=IN, condition=1e3)


@orders
@pytest.mark.parametrize("rule", [INGD, PEAK], ids=named)
def test_coupled_factors_rest_where_each_inverts_its_side_weighed_and_damped_by_the_other(
    rule: dict[str, Any], order: int
) -> None:
    """K Kᵀ = [w_C U_K + λ avg(CᵀC) I]⁻¹ and C's likewise; w = avg(H), times √(p_K p_C) for the peak."""
    fed, (a, g) = Fed(singd(lr=0.2, order=order, **rule), OUT, IN, damping=0.05), batches(1)[0]
    for _ in range(300):
        fed.see(a, g)
    K, C, (P_K, P_C) = fed.K, fed.C, fed.P
    H_K, H_C = K.mT @ moments(a) @ K, C.mT @ moments(g) @ C
    both = float((over_mean(H_K) * over_mean(H_C)).sqrt()) if rule is PEAK else 1.0
    on_K = both * average(H_C) * moments(a) + 0.05 * average(C.mT @ C) * eye(IN)
    on_C = both * average(H_K) * moments(g) + 0.05 * average(K.mT @ K) * eye(OUT)
    assert_close(P_K @ on_K, eye(IN), dimension=IN, condition=1e3)
    assert_close(P_C @ on_C, eye(OUT), dimension=IN, condition=1e3)


@pytest.mark.parametrize("rule", [INGD, PEAK], ids=named)
def test_undamped_and_coupled_factors_rest_at_the_inverse_of_the_kronecker_product(
    rule: dict[str, Any],
) -> None:
    fed, (a, g) = Fed(singd(lr=0.2, **rule), OUT, IN), batches(1)[0]
    for _ in range(400):
        fed.see(a, g)
    v = normal(OUT, IN, seed=7)
    expected = torch.linalg.solve(moments(g), v) @ torch.linalg.inv(moments(a))
    assert_close(fed.direction(v), expected, dimension=IN, condition=1e4)


# the way to the fixed point


def spiked(n: int, d: int, seed: int) -> Tensor:
    """Rows that are nearly constant, as pixels and activations are: one large curvature, d − 1 small ones."""
    return 0.1 * normal(n, d, seed=seed) + 1


SPIKED = spiked(60, 20, seed=1), spiked(60, 12, seed=2)


@pytest.mark.parametrize(("fit", "scale"), [(0, 0.1), (6, 1.0)], ids=["from the identity", "fitted"])
def test_the_largest_curvature_stays_near_one_under_the_peak_and_not_under_the_mean(
    fit: int, scale: float
) -> None:
    """‖Kᵀ U_K K‖₂ ‖Cᵀ U_C C‖₂, what a step multiplies, comes to 1 either way; the mean goes far above it."""
    highest, (a, g) = {}, (scale * x for x in SPIKED)
    for name, rule in (("mean", INGD), ("peak", PEAK)):
        fed, sizes = Fed(singd(lr=0.1, fit=fit, **rule), 12, 20), []
        for _ in range(300):
            fed.see(a, g)
            sizes.append(math.prod(largest(H) for H in whitened(fed, a, g)))
        assert sizes[-1] == pytest.approx(1.0, rel=1e-2)
        highest[name] = max(sizes)
    assert highest["peak"] < 1.3
    assert highest["mean"] > 3


@pytest.mark.parametrize("family", [Diagonal(), BlockDiagonal(size=2)], ids=str)
def test_what_a_structure_cannot_whiten_scales_the_layer_down_under_the_peak(family: Family) -> None:
    """At rest the largest curvature is p_K p_C under the mean and its square root under the peak."""
    for rule, power in ((INGD, 1.0), (PEAK, 0.5)):
        fed = Fed(singd(family, lr=0.1, fit=6, **rule), 12, 20)
        for _ in range(300):
            fed.see(*SPIKED)
        H_K, H_C = whitened(fed, *SPIKED)
        p = float(over_mean(H_K) * over_mean(H_C))
        assert p > 20
        assert largest(H_K) * largest(H_C) == pytest.approx(p**power, rel=1e-2)


# how near to KFAC


def slope(xs: list[float], errors: list[float]) -> float:
    """The order of convergence: of log(error) over log(x), by least squares."""
    x, y = (torch.tensor(v, dtype=DTYPE).log() for v in (xs, errors))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


BETAS = [0.1, 0.05, 0.025, 0.0125]


@orders
@pytest.mark.parametrize("start", ["identity", "anywhere"])
def test_one_step_of_ikfac_is_kfacs_inverse_up_to_the_square_of_its_rate(start: str, order: int) -> None:
    """K Kᵀ against [(1 − β) (K₀K₀ᵀ)⁻¹ + β (U_K + λI)]⁻¹: the error falls like β²."""
    lam, (a, g) = 0.05, (0.6 * x for x in batches(1)[0])  # so small that β = 0.1 is asymptotic
    K, C = (eye(IN), eye(OUT)) if start == "identity" else (_any(IN, 3, 0.2), _any(OUT, 4, 0.2))
    errors: list[list[float]] = [[], []]
    for beta in BETAS:
        fed = Fed(singd(lr=beta, order=order, **IKFAC), OUT, IN, damping=lam)
        fed.put(K, C)
        fed.see(a, g)
        for k, (P, start_, U) in enumerate(zip(fed.P, (K, C), (moments(a), moments(g)), strict=True)):
            old = torch.linalg.inv(start_ @ start_.mT)
            kfac = torch.linalg.inv((1 - beta) * old + beta * (U + lam * eye(len(U))))
            errors[k].append(float((P - kfac).norm()))
    for found in errors:
        assert slope(BETAS, found) == pytest.approx(2.0, abs=0.15), found


def test_ikfac_follows_kfacs_average_to_first_order() -> None:
    """Over one span of time β · steps, on batches that change: errors of order β² add up to order β."""
    lam, span, errors = 0.05, 1.0, []
    for beta in BETAS:
        fed, S = Fed(singd(lr=beta, **IKFAC), OUT, IN, damping=lam), (1 - lam) * eye(IN)
        for k in range(round(span / beta)):
            a, g = batches(1)[0]
            a = a * (1 + 0.3 * math.sin(6 * k * beta))
            fed.see(a, g)
            S = (1 - beta) * S + beta * moments(a)
        errors.append(float((fed.P[0] - torch.linalg.inv(S + lam * eye(IN))).norm()))
    assert slope(BETAS, errors) == pytest.approx(1.0, abs=0.15), errors


def _any(d: int, seed: int, off: float) -> Tensor:
    """Invertible and not symmetric."""
    return eye(d) + off * normal(d, d, seed=seed) / math.sqrt(d)


# the exponential


@pytest.mark.parametrize(("order", "falls"), [(1, 2.0), (2, 3.0)])
def test_the_exponential_is_truncated_behind_its_order(order: int, falls: float) -> None:
    (a, g), lam, errors = batches(1)[0], 0.05, []
    K, C = _any(IN, 3, 0.4), _any(OUT, 4, 0.4)
    m = 0.5 * (K.mT @ (moments(a) + lam * eye(IN)) @ K - eye(IN))
    for beta in BETAS:
        fed = Fed(singd(lr=beta, order=order, **IKFAC), OUT, IN, damping=lam)
        fed.put(K, C)
        fed.see(a, g)
        errors.append(float((fed.K - K @ torch.linalg.matrix_exp(-beta * m)).norm()))
    assert slope(BETAS, errors) == pytest.approx(falls, abs=0.15), errors


# gauge


@pytest.mark.parametrize(
    ("family", "settings", "t"),
    [
        (Dense(), {}, 3.0),
        (Dense(), {}, 1e-2),
        (Diagonal(), {}, 3.0),
        (Dense(), {"limit": 0.05}, 3.0),
        (Dense(), PEAK, 3.0),
        (Diagonal(), PEAK, 1e-2),
        (Dense(), {**PEAK, "limit": 0.05}, 3.0),
        (Dense(), {"order": 2}, 3.0),
        (Dense(), {"momentum": 0.9}, 3.0),
    ],
    ids=str,
)
def test_scale_that_the_factors_of_ingd_exchange_is_never_seen(
    family: Family, settings: dict[str, Any], t: float
) -> None:
    """(K, C) → (tK, C/t) leaves 50 directions as they were, and K's share of the scale where it was."""
    one, other = (Fed(singd(family, **{**INGD, **settings}), OUT, IN, damping=0.05) for _ in range(2))
    other.put(t * eye(IN), eye(OUT) / t)
    for k, (a, g) in enumerate(batches(50)):
        one.see(a, g)
        other.see(a, g)
        v = normal(OUT, IN, seed=k)
        assert_close(other.direction(v), one.direction(v), dimension=N * IN, condition=10.0)
    assert_close(other.K, t * one.K, dimension=N * IN, condition=10.0)


def test_ikfac_does_see_it() -> None:
    one, other = (Fed(singd(**IKFAC), OUT, IN, damping=0.05) for _ in range(2))
    other.put(1.5 * eye(IN), eye(OUT) / 1.5)
    for a, g in batches(50):
        one.see(a, g)
        other.see(a, g)
    v = normal(OUT, IN, seed=7)
    apart = (other.direction(v) - one.direction(v)).norm() / one.direction(v).norm()
    assert float(apart) > 1e-2


@pytest.mark.filterwarnings("error::curvlab.protocols.structure.NaiveFallback")
@pytest.mark.parametrize("family", GROUPS, ids=str)
def test_no_registered_family_falls_back_to_a_dense_matrix(family: Family) -> None:
    fed = Fed(singd(family, family, limit=0.5, fit=3, order=2), OUT, IN, damping=0.05)
    for a, g in batches(3):
        fed.see(a, g)
        assert bool(torch.isfinite(fed.direction(normal(OUT, IN, seed=7))).all())
