"""The inverse-free update of Kronecker factors: log-space steps on K and C, and the moves they make.

For one layer, ``U_K = E[a aᵀ]`` and ``U_C = E[g gᵀ]`` of the present batch, whitened by the factors:
``H_K = Kᵀ U_K K``, ``H_C = Cᵀ U_C C``.  Everything is products, sums and traces of structured
matrices, so it exists in every dtype; nothing is inverted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from curvlab.linalg.lookups import AnyRows, Lookups
from curvlab.linalg.power_iteration import probes, unit
from curvlab.protocols.rows import Rows
from curvlab.protocols.storage import Storage, work_of
from curvlab.protocols.structure import Structure, as_group

PART = "singd"

#: what weighs one factor's H in the other's step: see ``update``
Coupling = Literal["peak", "mean", "none"]


@dataclass
class Factors:
    """One layer's preconditioner ``(C Cᵀ) ⊗ (K Kᵀ)`` and the log-space momenta of its factors.

    No momentum, no tensor.  ``excess``, ``[*b]``, is √(p_K p_C) as it was last measured, where the coupling
    reads it (``update``).  ``updates`` counts the observations taken in.
    """

    K: Structure
    C: Structure
    m_K: Structure | None
    m_C: Structure | None
    excess: Tensor | None
    updates: int = 0


@dataclass(frozen=True)
class Rule:
    """How factors move; the settings of ``singd`` that the update reads."""

    coupling: Coupling
    momentum: float
    order: int
    limit: float
    relative: bool = False


def update(
    f: Factors,
    rows: Rows,
    damping: float,
    lr: float,
    rule: Rule,
    storage: Storage,
    *,
    measure: bool = True,
    ridge: float = 0.0,
) -> bool:
    """One step of K and C on one observation, each from the other's old value; m, K and C change in place.

    ``m_K ← α₁ m_K + ½ Π[w_C H_K + λ_C KᵀK − I]`` and ``K ← K Exp(−β m_K)``; C's likewise.

    | coupling | w_C | λ_C |  |
    |---|---|---|---|
    | mean | avg(H_C) | λ avg(CᵀC) | INGD, SINGD (arXiv 2302.09738, 2312.05705; specs 3 and 5) |
    | peak | avg(H_C) √(p_K p_C) | λ avg(CᵀC) | SINGD's fixed point where λ = 0, approached from below |
    | none | 1 | λ | IKFAC (specs 4) |

    avg is the mean of the diagonal, ``p = ‖Kᵀ U K‖₂ / avg(H)`` the peak of the whitened curvature over its
    mean, before any projection: 1 where it is a multiple of I, as at the fixed point of dense factors.
    While it is not, the mean lets a layer's largest curvature overshoot by ``p_K p_C``; under the peak it
    stays near 1.  Narrow structures, which cannot whiten everything, rest with it at ``√(p_K p_C)``, under
    the mean at ``p_K p_C``.  Without ``measure``, √(p_K p_C) is what it was when last measured: it moves as
    slowly as the factors do, and costs two thin products with all rows of each side.

    With ``rule.relative``, λ is in units of the observation's mean curvature, ``avg(U_K) avg(U_C)``, and
    without coupling in those of each factor's.

    ``ridge`` adds to λ, in units of the loss, where there is a coupling.

    False if the observation is not finite, or λ is relative to one without curvature: nothing has changed
    then, as it would stay in K, C and m.
    """
    assert rows.g is not None, "the labels of singd always give gradients"
    a: Any = rows.a  # one-hot only where K is of a family that takes them
    K, C = f.K.laid_out(), f.C.laid_out()
    on_K, on_C = as_group(K.family, PART), as_group(C.family, PART)
    H_K, H_C = on_K.congruence(K, a), on_C.congruence(C, rows.g)  # times rows' weights below
    square_K, square_C = on_K.square(K), on_C.square(C)
    sizes = [H_K.mean_diagonal(), H_C.mean_diagonal()]
    if rule.coupling != "none":
        sizes += [square_K.mean_diagonal(), square_C.mean_diagonal()]
    if rule.coupling == "peak":
        assert f.excess is not None
        sizes += [peak(K, rows.a), peak(C, rows.g)] if measure else [f.excess]
    if rule.relative:
        sizes = [_mean(rows.a, rows.a_weight), _mean(rows.g, rows.g_weight), *sizes]
    weights = _weights(torch.stack(sizes), rows, damping, rule, f.excess, ridge)
    if weights is None:
        return False
    w_K, w_C, damping_K, damping_C = weights
    m_K = _log_step(f.m_K, H_K, w_K, square_K, damping_K, rule.momentum, storage)
    m_C = _log_step(f.m_C, H_C, w_C, square_C, damping_C, rule.momentum, storage)
    move(K, m_K, lr, rule.order, rule.limit, storage)  # through the tensors that f.K is made of
    move(C, m_C, lr, rule.order, rule.limit, storage)
    return True


def move(K: Structure, m: Structure, lr: float, order: int, limit: float, storage: Storage) -> None:
    """``K ← K Exp(−β m)``, Exp truncated to ``I + X`` or, at order 2, ``I + X + ½ X²``.

    If ``‖β m‖₂``, as ``spectral_norm`` finds it, exceeds ``limit``, m is first shortened to that.  No
    direction of K then changes by much more than the fraction ``limit`` whatever was observed, ``I − β m``
    stays regular, and m does not remember an outlier at its full size.
    """
    group = as_group(K.family, PART)
    # the Frobenius norm, a bound that costs less, mostly says that there is nothing to shorten
    if limit < float("inf") and not all(size * lr <= limit for size in m.norm().flatten().tolist()):
        norm = m.spectral_norm() * lr
        m.scale_((limit / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1.0))
    change = group.product(K, m)
    further = group.product(change, m) if order == 2 else None

    def add(K: Structure) -> None:
        if further is not None:
            K.combine_(1.0, further, 0.5 * lr**2)
        K.combine_(1.0, change, -lr)

    storage.change_(K, add)


def peak(K: Structure, X: AnyRows) -> Tensor:
    """``‖Kᵀ XᵀX K‖₂``, from below: one step of power iteration on a few fixed vectors; O(n d).

    For one-hot rows, whose Gram matrix is diagonal as K then is, it is exact.
    """
    if isinstance(X, Lookups):
        any_rows: Any = X
        return as_group(K.family, PART).congruence(K, any_rows).spectral_norm()
    # few rows times many: a product with few columns takes up to five times as long
    w = (K @ probes(K.d, X).expand(*K.batch, K.d, -1)).mT @ X.mT
    found: Tensor = torch.linalg.vector_norm(K.rmatmul(unit(w) @ X), dim=-1).amax(-1)
    return found.square()


def _weights(
    measured: Tensor, rows: Rows, damping: float, rule: Rule, excess: Tensor | None, ridge: float = 0.0
) -> Sequence[float | Tensor] | None:
    """Half of what weighs K's observation, C's, and the damping of K and of C; of stacked blocks, of each.

    ``measured``, ``[q, *b]``: where λ is relative the means of U_K and U_C; the means of H_K and H_C and, as
    far as the coupling reads them, those of KᵀK and CᵀC and either both peaks of H, from which ``excess``
    is made anew, or the excess that is known.
    ``None`` if a block's are beyond what the dtype can hold; the excess is then as it was.
    They are read in one host sync, for what is made of them is a handful of numbers.
    """
    bounds = torch.finfo(measured.dtype)
    found, made = [], []
    for numbers in measured.reshape(len(measured), -1).mT.tolist():
        u_K, u_C, h_K, h_C, *more = numbers if rule.relative else (1.0, 1.0, *numbers)
        if not u_K * u_C > 0:
            return None
        if rule.coupling == "none":
            four = 0.5 * rows.a_weight, 0.5 * rows.g_weight, 0.5 * damping * u_K, 0.5 * damping * u_C
        else:
            square_K, square_C, *peaks = more
            square_K, square_C = u_K * u_C * square_K, u_K * u_C * square_C
            own = damping + ridge / (u_K * u_C)
            over = _excess(peaks, (h_K, h_C), bounds.tiny)
            both = 0.5 * rows.a_weight * rows.g_weight * over
            four = both * h_C, both * h_K, 0.5 * own * square_C, 0.5 * own * square_K
            made.append(over)
        if not all(x <= bounds.max for x in (h_K + h_C, h_K * h_C, *four)):
            return None
        found.append(four)
    stacked = measured.dim() > 1
    if excess is not None:
        excess.copy_(measured.new_tensor(made)) if stacked else excess.fill_(made[0])
    return measured.new_tensor(found).unbind(-1) if stacked else found[0]


def _excess(peaks: Sequence[float], means: tuple[float, float], tiny: float) -> float:
    """``√(p_K p_C)`` of the peaks and means of H_K and H_C; a single number is that already."""
    if len(peaks) == 1:
        return peaks[0]
    both = 1.0
    for largest, h in zip(peaks, means, strict=False):  # without peaks, under the mean, it is 1
        both *= max(largest / max(h, tiny), 1.0) ** 0.5
    return both


def fit(
    f: Factors, rows: Rows, damping: float, rounds: int, rule: Rule, storage: Storage, ridge: float = 0.0
) -> bool:
    """K and C from one observation: ``K Kᵀ ≈ (U_K + λ_K I)⁻¹``, ``C Cᵀ ≈ (U_C + λ_C I)⁻¹`` by products alone.

    Scales each factor so that its largest damped curvature is 1, and then iterates
    ``K ← K (I − ½ Π[H_K + λ_K KᵀK − I])``: IKFAC's update with β₁ = 1, which is the Newton-Schulz iteration
    of the inverse square root; n rounds reach curvatures down to ``2.25⁻ⁿ`` of the largest, so that what one
    batch has not seen is not yet trusted to be flat.
    At last a factor whose structure could not whiten the observation is scaled down until its peak is 1.
    λ is split as KFAC does, ``λ_K = √λ π``, ``λ_C = √λ / π``, ``π² = avg(U_K)/avg(U_C)``; without coupling
    each factor takes λ.  A relative λ is in units of those means, and ``ridge`` adds to λ, as in ``update``.
    False, and nothing
    changed, if the observation is not finite, or has no curvature to be relative to.
    """
    assert rows.g is not None
    h_K, h_C = _mean(rows.a, rows.a_weight), _mean(rows.g, rows.g_weight)
    if rule.relative:
        if not bool(((h_K > 0) & (h_C > 0)).all()):
            return False
        if rule.coupling == "none":
            share: float | Tensor = damping
        else:
            share = (damping + ridge / (h_K * h_C) if ridge else damping) ** 0.5
        damping_K, damping_C = share * h_K, share * h_C
    elif rule.coupling == "none":
        damping_K = damping_C = torch.full_like(h_K, damping)
    else:
        tiny = torch.finfo(h_K.dtype).tiny
        # a side that saw nothing (below a layer that starts at zero) says nothing of the ratio
        pi = torch.where((h_K > 0) & (h_C > 0), h_K / h_C.clamp(min=tiny), 1.0).sqrt()
        root = (damping + ridge) ** 0.5
        damping_K, damping_C = root * pi, root / pi
    if not bool(torch.isfinite(h_K + h_C).all()):
        return False
    wide = rows.to(work_of(f.K))
    storage.change_(f.K, lambda K: _fit(K, wide.a, rows.a_weight, damping_K, rounds, storage))
    storage.change_(f.C, lambda C: _fit(C, wide.g, rows.g_weight, damping_C, rounds, storage))
    size = f.K.norm() * f.C.norm()
    if bool(((size > 0) & torch.isfinite(size)).all()):
        return True
    for factor in (
        f.K,
        f.C,
    ):  # overflow on the way: a factor of zeros would leave its layer untrained for good
        one = factor.family.eye(factor.d, like=h_K, batch=factor.batch)
        for name, t in factor.tensors().items():
            t.copy_(one.tensors()[name])
    return False


def _mean(X: AnyRows, weight: float) -> Tensor:
    """``avg(U)`` of ``U = weight · XᵀX``."""
    if isinstance(X, Lookups):
        return X.counts().mean(-1) * weight
    found: Tensor = X.square().mean((-2, -1)) * (weight * X.shape[-2])
    return found


def _fit(K: Structure, X: Any, weight: float, damping: Tensor, rounds: int, storage: Storage) -> None:
    group = as_group(K.family, PART)
    for k in range(rounds):
        H, square = group.congruence(K, X).scale_(weight), group.square(K)
        if k == 0:
            s = _power(H.spectral_norm() + damping * square.mean_diagonal(), -0.5)
            K.scale_(s)
            H.scale_(s.square())
            square.scale_(s.square())
        m = _log_step(None, H, 0.5, square, 0.5 * damping, 0.0, storage)
        move(K, m, 1.0, 1, 0.5, storage)
    K.scale_(_power((peak(K, X) * weight).clamp(min=1.0), -0.5))


def _power(x: Tensor, p: float) -> Tensor:
    """x to a negative power; 1 where nothing was observed and nothing damps."""
    return torch.where(x > 0, x, torch.ones_like(x)) ** p


def _log_step(
    m: Structure | None,
    H: Structure,
    weight: Tensor | float,
    square: Structure,
    damping: Tensor | float,
    keep: float,
    storage: Storage,
) -> Structure:
    """``m ← keep · m + weight · H + damping · KᵀK − ½ I``, in m's buffer; in H's if there is no momentum."""
    if m is None:
        return storage.change_(H, lambda H: H.combine_(weight, square, damping).shift_(-0.5))
    return storage.change_(
        m, lambda m: m.combine_(keep, H, weight).combine_(1.0, square, damping).shift_(-0.5)
    )
