"""What keeps the factors in hand: the bound on their steps, the fit that they start from, narrow dtypes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.config import build_method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.state import export
from curvlab.precision.full import Full
from curvlab.protocols.structure import Family, Group
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab_singd.update import peak
from plugins.singd.tests.bare import IKFAC, INGD, PEAK, factors, named, optimizer, rules, singd
from plugins.singd.tests.hand_fed import Fed, average, eye, largest, moments, rows, whitened
from tests.limits.registered import families, registry

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
def test_no_step_is_much_longer_than_the_limit(
    family: Family, rule: dict[str, Any], limit: float, scale: float
) -> None:
    """‖β m‖₂ = ‖I − K⁻¹ K_new‖₂ is below twice the limit, whatever is observed, momentum included."""
    fed, longest = Fed(singd(family, limit=limit, **rule), OUT, IN, damping=0.05), 0.0
    for a, g in batches(10):
        K, C = fed.K, fed.C
        fed.see(scale * a, g)
        for old, new in ((K, fed.K), (C, fed.C)):
            change = torch.linalg.solve(old, new) - eye(len(old))
            longest = max(longest, float(torch.linalg.matrix_norm(change, 2)))
    assert longest < 2 * limit
    if scale == OUTLIER:
        assert longest >= limit * (1 - 1e-9), "the limit did not bind"


@pytest.mark.parametrize("d", [1, 2, 5, 40, 200])
def test_the_norm_behind_the_bound_is_at_most_the_true_one_and_more_than_half_of_it(d: int) -> None:
    """So that a limit of ½ leaves every ``I − β m`` regular; of a matrix of rank one it is exact."""
    for seed in range(5):
        A, x, y = (normal(*shape, seed=seed + k) for k, shape in enumerate([(d, d), (d, 1), (d, 1)]))
        for M in (A, A @ A.mT, A.triu(), torch.diag(A.diagonal())):
            size = float(torch.linalg.matrix_norm(M, 2))
            found = float(Dense().member(M).spectral_norm())
            assert 0.5 * size < found <= size * (1 + 1e-12)
        assert_close(Dense().member(x @ y.mT).spectral_norm(), x.norm() * y.norm(), dimension=d)


@pytest.mark.parametrize("d", [1, 2, 5, 40, 200])
def test_the_peak_is_at_most_the_largest_eigenvalue_and_no_small_part_of_it(d: int) -> None:
    """More than 0.4 of it where K = I; a tenth where K is anything; all of it where the rows are one."""
    eyes = Dense().eye(d, like=normal(1, seed=0))
    for seed in range(5):
        any_K, one = Dense().member(normal(d, d, seed=seed)), normal(1, d, seed=20 + seed)
        for n in (1, d // 2 + 1, 3 * d):
            X = normal(n, d, seed=10 + seed)
            for rows_ in (X, X + 1, X * torch.linspace(0.1, 2.0, d, dtype=X.dtype)):
                for K, share in ((eyes, 0.4), (any_K, 0.1)):
                    whole = rows_ @ K.dense()
                    size = float(torch.linalg.eigvalsh(whole.mT @ whole).max())
                    assert share * size < float(peak(K, rows_)) <= size * (1 + 1e-12)
        assert_close(peak(any_K, one), (one @ any_K.dense()).square().sum(), dimension=d)


@pytest.mark.parametrize("d", [2, 4, 10, 40])
def test_norms_are_not_found_from_rounding(d: int) -> None:
    """Gradients of softmax outputs add up to zero: what they say of the constant vector is rounding."""
    for seed in range(20):
        g = normal(12, d, seed=seed)
        g = g - g.mean(-1, keepdim=True)
        again = g + 1e-16 * normal(12, d, seed=100 + seed)
        eyes, H, almost = Dense().eye(d, like=g), Dense().member(g.mT @ g), Dense().member(again.mT @ again)
        assert float(peak(eyes, again)) == pytest.approx(float(peak(eyes, g)), rel=1e-12)
        assert float(almost.spectral_norm()) == pytest.approx(float(H.spectral_norm()), rel=1e-12)


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
@pytest.mark.parametrize("later", [0, 20])
def test_one_bad_batch_breaks_the_plain_rule(rule: dict[str, Any], later: int) -> None:
    """It turns directions round at once, and they stay so."""
    assert not sound(after_an_outlier(rule, later))


@rules
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("later", [0, 20])
def test_one_bad_batch_does_not_break_the_bounded_rule(rule: dict[str, Any], order: int, later: int) -> None:
    assert sound(after_an_outlier(rule, later, limit=0.5, order=order))


@rules
@pytest.mark.parametrize("scale", [100.0, 1e4])
@pytest.mark.parametrize("fit", [0, 6])
def test_an_outlier_is_soon_forgotten(rule: dict[str, Any], scale: float, fit: int) -> None:
    """In three updates m is about as long as it would be without it; in ten, K and C are on their way back.

    However large it was, as m keeps no more than was acted on.
    """
    part = singd(lr=0.1, fit=fit, limit=0.5, **{**rule, "momentum": 0.5})
    hurt, whole = (Fed(part, OUT, IN, damping=0.05) for _ in range(2))
    sizes, v = [], normal(OUT, IN, seed=7)
    for k in range(60):
        a, g = batches(4)[k % 4]
        hurt.see(a * (scale if k == 30 else 1.0), g)
        whole.see(a, g)
        m, m_whole = hurt.factors.m_K, whole.factors.m_K
        assert m is not None
        assert m_whole is not None
        if k == 30:
            assert float(m.norm()) > 5 * float(m_whole.norm()), "the outlier was none"
        if k >= 33:
            assert float(m.norm()) < 5 * float(m_whole.norm())
        sizes.append(float(hurt.direction(v).norm() / whole.direction(v).norm()))
    assert min(sizes) < 0.7
    assert sizes.index(min(sizes)) <= 35, "it went on shrinking"
    assert sizes[40] > 0.4
    assert sizes[55] == pytest.approx(1.0, abs=0.1)


@rules
def test_without_a_limit_m_is_not_shortened(rule: dict[str, Any]) -> None:
    """However large: then it is the sum of all steps, as published."""
    sizes = []
    for count in (1, 3):
        fed = Fed(singd(lr=0.0, **{**rule, "momentum": 0.5}), OUT, IN, damping=0.05)
        for _ in range(count):
            fed.see(OUTLIER * batches(1)[0][0], batches(1)[0][1])
        assert fed.factors.m_K is not None
        sizes.append(float(fed.factors.m_K.norm()))
    assert sizes[0] > OUTLIER
    assert sizes[1] == pytest.approx(1.75 * sizes[0])


@rules
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_after_a_bad_batch_the_bounded_factors_find_back(rule: dict[str, Any], momentum: float) -> None:
    """To where they would be without it.

    Up to a rotation, K ↦ KQ, that nothing undoes; the peak, found from fixed vectors, sees a little of it.
    """
    near = 1e-2 if rule is PEAK else 1e-3
    rule = {**rule, "momentum": momentum, "lr": 0.2, "limit": 0.5}
    hurt, whole = after_an_outlier(rule, 120), Fed(singd(**rule), OUT, IN, damping=0.05)
    for k in range(4 + 120):
        whole.see(*batches(4)[k % 4])
    v = normal(OUT, IN, seed=7)
    apart = (hurt.direction(v) - whole.direction(v)).norm() / whole.direction(v).norm()
    assert float(apart) < near


@pytest.mark.parametrize("lr", [0.5, 3.0, 100.0])
def test_the_second_order_turns_nothing_round_whatever_the_rate(lr: float) -> None:
    """1 − x + x²/2 is positive for every x, 1 − x is not."""
    signs = {}
    for order in (1, 2):
        fed = Fed(singd(lr=lr, order=order, **IKFAC), OUT, IN, damping=0.05)
        fed.see(*(5 * x for x in batches(1)[0]))  # from I: K is a function of a symmetric matrix
        signs[order] = float(torch.linalg.eigvalsh(fed.K).min()) > 0
    assert signs == {1: False, 2: True}


# observations that say nothing


@rules
@pytest.mark.parametrize("fit", [0, 6])
def test_an_observation_that_overflowed_changes_nothing(rule: dict[str, Any], fit: int) -> None:
    fed = Fed(singd(fit=fit, **rule), OUT, IN, damping=0.05)
    for k, (a, g) in enumerate(batches(3)):
        before = [t.clone() for t in export(fed.factors)[0].values()]
        fed.see(a, g * (torch.inf if k == 2 else 1.0))
        same = all(torch.equal(x, y) for x, y in zip(before, export(fed.factors)[0].values(), strict=True))
        assert same is (k == 2)


@rules
@pytest.mark.parametrize("fit", [0, 6])
@pytest.mark.parametrize("side", ["a", "g"])
def test_a_first_observation_that_overflowed_is_as_if_it_had_not_been(
    rule: dict[str, Any], fit: int, side: str
) -> None:
    """It is not counted, and the next one is fitted in its place."""
    late, fed = (Fed(singd(fit=fit, limit=0.5, **rule), OUT, IN, damping=0.05) for _ in range(2))
    a, g = batches(1)[0]
    late.see(a * (torch.inf if side == "a" else 1.0), g * (torch.nan if side == "g" else 1.0))
    assert late.factors.updates == 0
    assert torch.equal(late.K, eye(IN))
    for k, (a, g) in enumerate(batches(3)):
        late.see(a, g)
        fed.see(a, g)
        assert late.factors.updates == k + 1
        assert torch.equal(late.K, fed.K)
        assert torch.equal(late.C, fed.C)


@rules
@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize("fit", [0, 6])
def test_first_gradients_of_zero_do_no_lasting_harm(rule: dict[str, Any], damping: float, fit: int) -> None:
    """As below a layer that starts at zero: later observations are heard as if that one had not been."""
    late, fed = (Fed(singd(fit=fit, lr=0.2, limit=0.5, **rule), OUT, IN, damping) for _ in range(2))
    a, g = batches(1)[0]
    late.see(a, 0 * g)
    for _ in range(120):
        late.see(a, g)
        fed.see(a, g)
    v = normal(OUT, IN, seed=7)
    apart = (late.direction(v) - fed.direction(v)).norm() / fed.direction(v).norm()
    assert float(apart) < 1e-2


@rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_network_whose_last_layer_starts_at_zero_trains(rule: dict[str, Any], dtype: torch.dtype) -> None:
    """The first gradients of all others are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    for p in model[-1].parameters():
        nn.init.zeros_(p)
    ours = optimizer(model, singd(lr=0.1, limit=0.5, fit=6, **rule), lr=0.02, damping=0.1)
    x = normal(32, 6, seed=1)
    y, losses = (x @ normal(6, 3, seed=2)).to(dtype), []
    for _ in range(60):
        ours.zero_grad()
        loss = nn.functional.mse_loss(model(x.to(dtype)), y)
        loss.backward()
        ours.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


# the fit at the start


def shares(a: Tensor, g: Tensor, damping: float, rule: dict[str, Any]) -> tuple[float, float]:
    """What is added to U_K and to U_C: λ as KFAC splits it; all of it to each without coupling."""
    if rule["coupling"] == "none":
        return damping, damping
    pi = float((average(moments(a)) / average(moments(g))).sqrt())
    return damping**0.5 * pi, damping**0.5 / pi


def fitted(rule: dict[str, Any], rounds: int, family: Family | None = None, **settings: Any) -> Fed:
    fed = Fed(singd(family, fit=rounds, **{**rule, **settings}), OUT, IN, damping=0.05)
    fed.see(*batches(1)[0])
    return fed


@rules
def test_many_rounds_fit_the_damped_inverses(rule: dict[str, Any]) -> None:
    a, g = batches(1)[0]
    for P, U, share in zip(
        fitted(rule, 30).P, (moments(a), moments(g)), shares(a, g, 0.05, rule), strict=True
    ):
        assert_close(P @ (U + share * eye(len(U))), eye(len(U)), dimension=IN, condition=100.0)


@rules
def test_many_rounds_fit_a_diagonal_to_the_diagonals_up_to_its_scale(rule: dict[str, Any]) -> None:
    """What a diagonal leaves of the largest curvature is divided out, if it is more than 1."""
    a, g = batches(1)[0]
    found, overs = fitted(rule, 30, Diagonal()), []
    for P, U, share in zip(found.P, (moments(a), moments(g)), shares(a, g, 0.05, rule), strict=True):
        D = Diagonal().member((U.diagonal() + share).pow(-0.5).diag())
        over = peak(D, torch.linalg.cholesky(U).mT).clamp(min=1.0)
        overs.append(float(over))
        assert_close(P.diagonal() * (U.diagonal() + share) * over, torch.ones(len(U)).double(), dimension=IN)
    assert max(overs) > 1.1


@rules
@pytest.mark.parametrize("family", [f for f in families() if isinstance(f, Group)], ids=str)
@pytest.mark.filterwarnings("ignore::curvlab.protocols.structure.NaiveFallback")
def test_after_the_fit_no_curvature_is_above_one_whatever_the_structure(
    family: Family, rule: dict[str, Any]
) -> None:
    """Of rows that are nearly constant, whose entries a narrow structure cannot tell apart."""
    a, g = (0.1 * normal(30, d, seed=d) + 1 for d in (20, 12))
    fed = Fed(singd(family, fit=6, **rule), 12, 20, damping=1e-4)
    fed.see(a, g)
    for K, X, H in zip((fed.factors.K, fed.factors.C), (a, g), whitened(fed, a, g), strict=True):
        assert float(peak(K, X)) / len(X) <= 1 + 1e-9
        assert 0.5 < largest(H) < 1.1


def test_without_that_a_diagonal_would_leave_as_many_as_its_dimension() -> None:
    a = 0.1 * normal(30, 20, seed=20) + 1
    K = Diagonal().member(moments(a).diagonal().pow(-0.5).diag())
    assert float(peak(K, a)) / len(a) > 15


@rules
@pytest.mark.parametrize("rounds", [1, 2, 4, 6])
def test_few_rounds_reach_the_large_curvatures_from_below(rule: dict[str, Any], rounds: int) -> None:
    """A curvature that is e of the largest comes to at most 1, and near 2.25ⁿ e if that is less."""
    a, g = batches(1)[0]
    found = fitted(rule, rounds)
    sides = zip((found.K, found.C), (moments(a), moments(g)), shares(a, g, 0.05, rule), strict=True)
    for K, U, share in sides:
        damped = U + share * eye(len(U))
        e, Q = torch.linalg.eigh(damped)
        whitened = (Q.mT @ K.mT @ damped @ K @ Q).diagonal()  # K is a polynomial of U: this is diagonal
        reached = (2.25**rounds * e / e.max()).clamp(max=1.0)
        assert float(whitened.max()) <= 1 + 1e-9
        assert bool((whitened >= 0.25 * reached).all())
        assert bool((whitened <= 2 * 2.25**rounds * e / e.max()).all())


@rules
def test_the_fit_happens_once(rule: dict[str, Any]) -> None:
    """The second observation is the rule's own, at the rule's own rate."""
    fed = fitted(rule, 6, lr=0.0)
    K, (a, g) = fed.K, batches(1)[0]
    assert not torch.equal(K, eye(IN))
    fed.see(10 * a, g)
    assert torch.equal(fed.K, K)


@pytest.mark.parametrize("c", [30.0, 1e-3])
@pytest.mark.parametrize(
    ("rule", "damping"),
    [(INGD, 0.05), (PEAK, 0.05), (IKFAC, 0.0)],
    ids=["INGD", "peak", "IKFAC, undamped"],
)
def test_a_loss_in_other_units_gives_the_step_in_those_units(
    rule: dict[str, Any], damping: float, c: float
) -> None:
    """L → cL: gradients c, curvature c², so with λ → c²λ the direction is 1/c of what it was, at once.

    Not from the identity, where it takes the factors some time to find their scale; and not for IKFAC
    with damping, which it adds to each factor.
    """
    v = normal(OUT, IN, seed=7)
    for fit, holds in ((6, True), (0, False)):
        one = Fed(singd(fit=fit, **rule), OUT, IN, damping)
        other = Fed(singd(fit=fit, **rule), OUT, IN, c * c * damping)
        for k, (a, g) in enumerate(batches(10)):
            one.see(a, g)
            other.see(a, c * g)
            found, expected = other.direction(c * v), one.direction(v) / c
            if holds:
                assert_close(found, expected, dimension=N * IN, condition=100.0, what=f"step {k}")
        assert holds or not bool(torch.isclose(found, expected, rtol=0.1).all())


# narrow dtypes


def one_of_each_kind() -> list[Family]:
    """One family of every class that is closed under products."""
    return list({type(f): f for f in families() if isinstance(f, Group)}.values())


@pytest.mark.parametrize(
    ("family", "rule", "dtype"),
    [
        *((f, PEAK, torch.bfloat16) for f in one_of_each_kind()),
        (Dense(), INGD, torch.bfloat16),
        (Dense(), IKFAC, torch.bfloat16),
        *((Dense(), rule, dtype) for rule in (INGD, PEAK, IKFAC) for dtype in (torch.float32, torch.float64)),
    ],
    ids=named,
)
def test_fifty_steps_in_every_dtype(family: Family, rule: dict[str, Any], dtype: torch.dtype) -> None:
    """Finite and downhill; every state in the dtype of its parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    part = singd(family, family, lr=0.1, limit=0.5, fit=6, **rule)
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


@pytest.mark.parametrize("size", [1e6, 1e9, 1e12, 1e18])
@pytest.mark.parametrize("coupling", ["peak", "mean", "none"])
@pytest.mark.parametrize("at", [0, 3])
def test_enormous_inputs_leave_factors_that_still_train_their_layer(
    size: float, coupling: str, at: int
) -> None:
    """float32, where squares overflow from 2e19 on: as the first observation, or as a later one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    method = build_method(registry(), "singd", {"refresh": 1, "structure": "dense"})
    part = replace(method.preconditioner, coupling=coupling)
    optimizer = CurvatureOptimizer(replace(method, preconditioner=part), net, backend=Full("float32"))
    x, y = torch.randn(16, 6), torch.randint(0, 3, (16,))
    for step in range(6):
        scale = size if step == at else 1.0
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x * scale), y).backward()
        optimizer.step()
    for block in optimizer.arms[0].state.preconditioner.blocks.values():
        for factor in (block.K, block.C):
            assert bool(torch.isfinite(factor.dense()).all())
            assert bool(torch.linalg.matrix_rank(factor.dense().double(), rtol=1e-30) == factor.d)
