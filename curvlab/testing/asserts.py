"""Closeness, judged by a tolerance that is derived and reported so that a failure can be read.

A tolerance comes from the dtype, from the length of the sums behind an entry and from the condition
of what was solved; it is relative to the largest expected entry, as rounding errors of matrix products
are.  Statistical claims are judged at a stated rate of false alarms.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector

#: rounding errors of a few chained sums add up; sixteen of them are more than any kernel of ours chains
CHAIN = 16.0


def tolerance(dtype: torch.dtype, dimension: int, condition: float = 1.0) -> float:
    """Relative error that sums of ``dimension`` terms explain: ``16 · ε · dimension · condition``."""
    return CHAIN * float(torch.finfo(dtype).eps) * max(dimension, 1) * max(condition, 1.0)


def assert_close(
    actual: Tensor,
    expected: Tensor | float,
    *,
    dimension: int | None = None,
    condition: float = 1.0,
    scale: float | None = None,
    what: str = "value",
) -> None:
    """``actual`` equals ``expected`` up to rounding; else a report of the worst entry.

    ``dimension``: terms in the longest sum behind an entry (default: the longest axis).  ``condition``:
    condition number of a solved system, 1 if none was.  ``scale``: what errors are relative to (default:
    the largest expected entry).  The coarser of the two dtypes decides.
    """
    wanted = torch.as_tensor(expected, dtype=None if isinstance(expected, Tensor) else actual.dtype)
    if wanted.shape != actual.shape:
        raise AssertionError(f"{what}: shape {tuple(actual.shape)}, expected {tuple(wanted.shape)}")
    if actual.numel() == 0:
        return
    dtype = _coarser(actual.dtype, wanted.dtype)
    length = max(actual.shape, default=1) if dimension is None else dimension
    a, b = actual.detach().double(), wanted.detach().double()
    size = float(b.abs().max()) if scale is None else scale
    allowed = tolerance(dtype, length, condition) * size
    off = (a - b).abs()
    wrong = ~(off <= allowed)  # a NaN is wrong
    if bool(wrong.any()):
        how = f"{_short(dtype)}, sums of {length}" + (f", condition {condition:.3g}" if condition > 1 else "")
        raise AssertionError(f"{what}: {_report(a, b, off, wrong)}\n  allowed: {allowed:.3g} ({how})")


def assert_same(
    actual: BlockVector, expected: BlockVector, *, condition: float = 1.0, what: str = "vector"
) -> None:
    """Two block vectors agree block by block, up to rounding of sums as long as a block's rows or columns."""
    if actual.layout != expected.layout:
        raise AssertionError(f"{what}: blocks {actual.layout.shapes}, expected {expected.layout.shapes}")
    size = float(expected.norm())
    for name, block in expected.items():
        assert_close(actual[name], block, condition=condition, scale=size, what=f"{what}, block {name!r}")


def assert_self_adjoint(
    operator: LinearOperator[BlockVector], like: BlockVector, *, psd: bool, seed: int = 0
) -> None:
    """``⟨u, A v⟩ = ⟨A u, v⟩`` and, if ``psd``, ``⟨v, A v⟩ ≥ 0``, for random vectors."""
    generator = torch.Generator(device=like.device).manual_seed(seed)
    for _ in range(4):
        u, v = (_random(like, generator) for _ in range(2))
        Au, Av = operator @ u, operator @ v
        size = float(u.norm() * Av.norm())
        left, right = u.dot(Av), Au.dot(v)
        assert_close(left, right, dimension=like.layout.size, scale=size, what="⟨u, Av⟩ against ⟨Au, v⟩")
        slack = tolerance(like.dtype, like.layout.size) * float(v.norm() * Av.norm())
        if psd and not float(v.dot(Av)) >= -slack:
            raise AssertionError(f"⟨v, Av⟩ = {float(v.dot(Av)):.6g} is below −{slack:.3g}: not PSD")


def assert_mean(samples: Tensor, expected: Tensor, *, false_alarm: float, what: str = "mean") -> None:
    """The mean over the leading axis of ``samples`` is ``expected``, entry by entry.

    A true claim fails with probability at most ``false_alarm`` (normal approximation of the mean,
    Bonferroni over entries); an entry that does not vary must be exact up to rounding.
    """
    m, entries = samples.shape[0], max(expected.numel(), 1)
    quantile = NormalDist().inv_cdf(1.0 - false_alarm / (2 * entries))
    mean, spread = samples.double().mean(0), samples.double().std(0) / math.sqrt(m)
    size = float(samples.abs().max()) if samples.numel() else 0.0
    allowed = quantile * spread + tolerance(samples.dtype, m) * size
    off = (mean - expected.double()).abs()
    wrong = ~(off <= allowed)
    if bool(wrong.any()):
        worst = (off / allowed).argmax()
        rule = f"{quantile:.2f} standard errors of {m} samples: false alarm {false_alarm:g}"
        report = _report(mean, expected.double(), off / allowed, wrong)
        raise AssertionError(
            f"{what}: {report}\n  allowed there: {float(allowed.flatten()[worst]):.3g} ({rule})"
        )


def _report(a: Tensor, b: Tensor, badness: Tensor, wrong: Tensor) -> str:
    """The worst entry: index, both values, their ratio; and how many entries are wrong."""
    flat = int(torch.where(torch.isnan(badness), torch.inf, badness).argmax())
    x, y = float(a.flatten()[flat]), float(b.flatten()[flat])
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), a.shape)) if a.dim() else ()
    ratio = x / y if y else math.nan
    return (
        f"{int(wrong.sum())} of {wrong.numel()} entries differ; the worst is {list(where)}: "
        f"{x:.17g}, expected {y:.17g}, ratio {ratio:.12g}, difference {abs(x - y):.3g}"
    )


def _coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    if not a.is_floating_point or not b.is_floating_point:
        raise AssertionError(f"expected floating-point tensors, got {a} and {b}")
    return a if torch.finfo(a).eps >= torch.finfo(b).eps else b


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _random(like: BlockVector, generator: torch.Generator) -> BlockVector:
    vector = like.zeros_like()
    vector.flat.copy_(
        torch.randn(like.layout.size, generator=generator, dtype=like.dtype, device=like.device)
    )
    return vector
