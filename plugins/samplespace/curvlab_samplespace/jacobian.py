"""The Jacobian of a batch's residuals, held as rows of layers and never built unless that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import UnsupportedEvidence
from curvlab.linalg.lookups import Lookups, dense_rows
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels
from curvlab.protocols.reader import products

#: numbers that a product holds at once beside its result
GROUP = 2**22


@dataclass(frozen=True)
class Term:
    """The rows of one loss term, each times ``scale``: row ``k n + i`` is that of vector k and example i."""

    layers: Mapping[str, LayerStats]
    examples: int
    vectors: int
    scale: float

    @property
    def rows(self) -> int:
        """How many rows of the Jacobian it has."""
        return self.examples * self.vectors


@dataclass(frozen=True)
class Jacobian:
    """J ``[m, P]`` with ``∇L = Jᵀ residual`` and Gauss–Newton matrix ``JᵀJ``, for labels that say so.

    Rows are scaled by 1/√n of their term.  A block that a term does not depend on counts as zero.
    """

    terms: tuple[Term, ...]
    layout: BlockLayout
    like: Tensor
    #: D⁻¹ of each block, rows and columns, if this is J D⁻¹
    metric: Mapping[str, tuple[Float[Tensor, " o"], Float[Tensor, " i"]]] | None = None

    @classmethod
    def of(cls, seen: Evaluation, labels: Labels, part: str) -> Jacobian:
        """From one evaluation's statistics; raises ``UnsupportedEvidence`` if a block has none."""
        layers, layout = seen.layers[labels], seen.gradient.layout
        missing = [n for n in layout.names if n not in layers and bool(seen.gradient[n].any())]
        if missing:
            raise UnsupportedEvidence(part, missing[0], "rows of every block", "none for this one")
        count = max((len(terms) for terms in layers.values()), default=0)
        found = []
        for t in range(count):
            own = {n: terms[t].to(seen.gradient.dtype) for n, terms in layers.items() if n in layout.shapes}
            sized = next((s for s in own.values() if s.grads is not None and len(s.inputs)), None)
            if sized is None or sized.grads is None:
                continue
            v, n = sized.grads.shape[:2]
            for name, stats in own.items():
                if len(stats.inputs) and (stats.grads is None or stats.grads.shape[:2] != (v, n)):
                    got = "none" if stats.grads is None else f"{stats.grads.shape[1]} rows for {n} examples"
                    raise UnsupportedEvidence(part, name, "one row for each example", got)
            # rows for labels of the data carry √positions too much for the gradient of an example
            positions = seen.positions if labels is Labels.DATA else 1
            scale = (n * positions) ** -0.5
            found.append(Term({k: s for k, s in own.items() if len(s.inputs)}, n, v, scale))
        return cls(tuple(found), layout, seen.gradient.flat)

    @property
    def rows(self) -> int:
        """m."""
        return sum(term.rows for term in self.terms)

    def scaled(self, power: float) -> Jacobian:
        """``J D⁻¹``; entry (o, i) of D's block is ``(‖g_o‖ ‖a_i‖)^power``, of its gradients and inputs.

        These are root mean squares over rows, no less than 1e-4 of the largest of their side: with power 1
        about the norms of J's columns, as Marquardt scales them, and never more than two vectors a layer.
        """
        if power == 0.0:
            return self
        metric = {}
        for name in self.layout.names:
            mine = [(t, t.layers[name]) for t in self.terms if name in t.layers]
            if mine:
                rows, columns = zip(*(_squares(s, t.scale) for t, s in mine), strict=True)
                metric[name] = _power(rows, -power), _power(columns, -power)
        terms = tuple(
            Term({n: _divided(s, *metric[n]) for n, s in t.layers.items()}, t.examples, t.vectors, t.scale)
            for t in self.terms
        )
        return Jacobian(terms, self.layout, self.like, metric)

    def unscaled(self, x: BlockVector) -> BlockVector:
        """``D⁻¹ x``, in place."""
        for name, (rows, columns) in (self.metric or {}).items():
            x[name].view(len(rows), len(columns)).mul_(rows.unsqueeze(1)).mul_(columns)
        return x

    def measured(self, v: BlockVector) -> BlockVector:
        """``D v``: itself without a metric."""
        if self.metric is None:
            return v
        found = v.clone()
        for name, (rows, columns) in self.metric.items():
            found[name].view(len(rows), len(columns)).div_(rows.unsqueeze(1)).div_(columns)
        return found

    def block(self, name: str) -> Jacobian:
        """The columns of one block."""
        terms = tuple(
            Term({k: s for k, s in t.layers.items() if k == name}, t.examples, t.vectors, t.scale)
            for t in self.terms
        )
        return Jacobian(terms, self.layout.restrict((name,)), self.like, self.metric)

    def residual(self, parts: tuple[Float[Tensor, "v n"], ...]) -> Float[Tensor, " m"]:
        """Numbers by term, vector and example, as evidence has them, in the order and scale of the rows."""
        present = [r for r in parts if r.shape[1]]
        return torch.cat([r.reshape(-1) * t.scale for r, t in zip(present, self.terms, strict=True)]).to(
            self.like
        )

    def mean_square(self) -> float:
        """The mean squared norm of a row: the mean of the kernel's diagonal."""
        total = 0.0
        for term in self.terms:
            for stats in term.layers.values():
                total += float(_square_norms(stats).sum()) * term.scale**2
        return total / max(self.rows, 1)

    # products

    def times(self, v: BlockVector) -> Float[Tensor, " m"]:
        """``J v``; ``2 m s o i`` flops a layer."""
        found = []
        for term in self.terms:
            total = self.like.new_zeros(term.vectors, term.examples)
            for name, stats in term.layers.items():
                total += _inner(stats, v[name])
            found.append(total.reshape(-1) * term.scale)
        return torch.cat(found)

    def transposed(self, c: Float[Tensor, " m"]) -> BlockVector:
        """``Jᵀ c``, a fresh vector; the cost of a backward pass."""
        found = self.layout.zeros(like=self.like)
        start = 0
        for term in self.terms:
            share = (c[start : start + term.rows] * term.scale).view(term.vectors, term.examples)
            start += term.rows
            for name, stats in term.layers.items():
                found[name].add_(_weighted(stats, share).view(found[name].shape))
        return found

    def dense(self) -> Float[Tensor, "m P"]:
        """J itself, ``m P`` numbers."""
        J = self.like.new_zeros(self.rows, self.layout.size)
        start = 0
        for term in self.terms:
            for name, stats in term.layers.items():
                at, _ = self.layout.offsets[name]
                rows = _rows(stats).flatten(0, 1)
                J[start : start + term.rows, at : at + rows.shape[1]] = rows * term.scale
            start += term.rows
        return J

    def gram(self) -> Float[Tensor, "m m"]:
        """``K = J Jᵀ``, layer by layer: of inputs and gradients, or of a layer's rows if that is cheaper."""
        K = self.like.new_zeros(self.rows, self.rows)
        starts = [sum(t.rows for t in self.terms[:k]) for k in range(len(self.terms))]
        for name in self.layout.names:
            mine = [
                (s, t, t.layers[name]) for s, t in zip(starts, self.terms, strict=True) if name in t.layers
            ]
            if _cheaper_as_rows(mine, self.layout.shapes[name].numel()):
                R = self.like.new_zeros(self.rows, self.layout.shapes[name].numel())
                for start, term, stats in mine:
                    R[start : start + term.rows] = _rows(stats).flatten(0, 1) * term.scale
                K.addmm_(R, R.mT)
                continue
            for k, (start, term, stats) in enumerate(mine):
                for other_start, other, theirs in mine[k:]:
                    part = _pairs(stats, theirs).mul_(term.scale * other.scale)
                    rows, columns = (
                        slice(start, start + term.rows),
                        slice(other_start, other_start + other.rows),
                    )
                    K[rows, columns] += part
                    if other is not term:
                        K[columns, rows] += part.mT
        return K


def _cheaper_as_rows(mine: list[tuple[int, Term, LayerStats]], size: int) -> bool:
    """Whether building a layer's rows costs fewer flops than inner products of inputs and of gradients."""
    rows = sum(t.rows for _, t, _ in mine)
    if rows * size > 16 * GROUP:
        return False
    if any(_grouped(s) for _, _, s in mine):
        return True
    built = sum(2.0 * t.rows * s.inputs.shape[1] * size for _, t, s in mine) + 2.0 * rows * rows * size
    wide = sum(t.examples * s.inputs.shape[1] for _, t, s in mine)
    tall = sum(t.rows * s.inputs.shape[1] for _, t, s in mine)
    i = mine[0][2].inputs.shape[-1]
    o = size // i
    return built < 2.0 * wide * wide * i + 2.0 * tall * tall * (o + 2)


def _grouped(stats: LayerStats) -> bool:
    """Whether the layer's outputs are in groups that read inputs of their own."""
    assert stats.grads is not None
    return stats.inputs.shape[1] != stats.grads.shape[2]


def _pairs(mine: LayerStats, theirs: LayerStats) -> Float[Tensor, "p q"]:
    """``Σ_{s,t} (a_s·a_t)(g_s·g_t)`` for all pairs of rows, a few examples at a time."""
    assert mine.grads is not None and theirs.grads is not None  # noqa: PT018
    v, n, s, o = mine.grads.shape
    w, m, t, _ = theirs.grads.shape
    if _grouped(mine):
        return _rows(mine).flatten(0, 1) @ _rows(theirs).flatten(0, 1).mT
    found = mine.grads.new_empty(v, n, w, m)
    h = theirs.grads.reshape(w * m * t, o)
    each = max(1, 4 * GROUP // max(s * w * m * t, 1))
    for k in range(0, n, each):
        some = slice(k, k + each)
        a = _inputs(mine.inputs, some, theirs.inputs)
        for u in range(v):
            g = (mine.grads[u, some].reshape(-1, o) @ h.mT).view(-1, s, w, m, t)
            found[u, some] = g.mul_(a).sum((1, 4)) if s > 1 or t > 1 else g.mul_(a)[:, 0, :, :, 0]
    return found.view(v * n, w * m)


def _inputs(mine: Tensor | Lookups, some: slice, theirs: Tensor | Lookups) -> Float[Tensor, "k s 1 m t"]:
    """Inner products of inputs, ``[k, s, 1, m, t]``."""
    if isinstance(mine, Lookups) or isinstance(theirs, Lookups):
        assert isinstance(mine, Lookups) and isinstance(theirs, Lookups)  # noqa: PT018
        same = mine.index[some].reshape(-1, 1) == theirs.index.reshape(1, -1)
        found = same.to(mine.dtype)
    else:
        found = mine[some].reshape(-1, mine.shape[-1]) @ theirs.reshape(-1, theirs.shape[-1]).mT
    s, (m, t) = mine.shape[1], theirs.shape[:2]
    return found.view(-1, s, 1, m, t)


def _rows(stats: LayerStats) -> Float[Tensor, "v n size"]:
    """The rows of a layer."""
    assert stats.grads is not None
    return products(stats.inputs, stats.grads).flatten(2)


def _square_norms(stats: LayerStats) -> Float[Tensor, "v n"]:
    """Squared norms of rows, a few examples at a time."""
    g = stats.grads
    assert g is not None
    if g.shape[2] == 1 and stats.inputs.shape[1] == 1 and isinstance(stats.inputs, Tensor):
        return g.square().sum((2, 3)) * stats.inputs.square().sum((1, 2))
    each = max(1, GROUP // (g.shape[0] * g.shape[3] * stats.inputs.shape[-1]))
    parts = [
        _rows(LayerStats(stats.inputs[k : k + each], g[:, k : k + each])).square().sum(2)
        for k in range(0, g.shape[1], each)
    ]
    return torch.cat(parts, 1)


def _inner(stats: LayerStats, v: Tensor) -> Float[Tensor, "v n"]:
    """Every row times a vector."""
    g = stats.grads
    assert g is not None
    o, i = g.shape[-1], stats.inputs.shape[-1]
    if _grouped(stats):
        return _rows(stats) @ v.reshape(-1)
    V = v.reshape(o, i)
    if isinstance(stats.inputs, Lookups):
        pushed = V.mT[stats.inputs.index]
    else:
        pushed = stats.inputs @ V.mT
    return torch.einsum("vnso,nso->vn", g, pushed)


def _weighted(stats: LayerStats, share: Float[Tensor, "v n"]) -> Float[Tensor, "o i"]:
    """The weighted sum of rows."""
    g = stats.grads
    assert g is not None
    own = torch.einsum("vn,vnso->nso", share, g)
    if isinstance(stats.inputs, Lookups):
        return stats.inputs.scattered(own).mT
    if _grouped(stats):
        return products(stats.inputs, own).sum(0)
    a = dense_rows(stats.inputs)
    return own.flatten(0, 1).mT @ a.flatten(0, 1)


def _squares(stats: LayerStats, scale: float) -> tuple[Float[Tensor, " o"], Float[Tensor, " i"]]:
    """Sums over rows of squared gradients and squared inputs, of a term whose rows have this scale."""
    assert stats.grads is not None
    g = stats.grads.square().sum((0, 1, 2)) * scale**2
    if isinstance(stats.inputs, Lookups):
        return g, g.new_ones(stats.inputs.d)
    return g, stats.inputs.square().sum((0, 1)) * scale**2


def _power(squares: tuple[Tensor, ...], power: float) -> Tensor:
    """A power of the roots of sums over terms, relative to the largest, no less than 1e-4; 1 if zero."""
    total = torch.stack(squares).sum(0)
    largest = total.max()
    if not float(largest) > 0:
        return torch.ones_like(total)
    return (total / largest).sqrt().clamp(min=1e-4).pow(power)


def _divided(stats: LayerStats, rows: Tensor, columns: Tensor) -> LayerStats:
    assert stats.grads is not None
    inputs = stats.inputs if isinstance(stats.inputs, Lookups) else stats.inputs * columns
    return LayerStats(inputs, stats.grads * rows, stats.channels)
