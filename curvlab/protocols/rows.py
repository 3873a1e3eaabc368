"""Layer statistics as rows whose Gram matrices are the Kronecker factors.

``A = Σ a aᵀ · weight_A`` over rows ``[r, i]`` and ``B = Σ g gᵀ · weight_B`` over rows ``[q, o]``, with the
scales of the mean loss (KFAC-expand and KFAC-reduce, arXiv 2311.00636):

| sharing | rows of A | weight | rows of B | weight |
|---|---|---|---|---|
| expand | every position of every example | 1/(n s) | every vector, example and position | 1/n |
| reduce | mean over positions | 1/n | sum over positions | 1/n |

One-hot inputs are always expanded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault, UnsupportedEvidence
from curvlab.linalg.lookups import AnyRows, Lookups, flattened
from curvlab.linalg.work import work_dtype
from curvlab.protocols.evidence import Evaluation, LayerStats

Rule = Literal["expand", "reduce", "auto"]

#: one rule for all layers, or rules by pattern of block names (shell wildcards; the first that matches)
Sharing = Rule | Mapping[str, Rule]


@dataclass(frozen=True)
class Rows:
    """The rows of both factors of one block and what one of them weighs; no ``g`` means B = I.

    ``a`` are ``[r, i]``, dense or one-hot.
    """

    a: AnyRows
    a_weight: float
    g: Float[Tensor, "q o"] | None
    g_weight: float

    def to(self, dtype: torch.dtype) -> Rows:
        """The same rows in another dtype."""
        return replace(self, a=self.a.to(dtype), g=None if self.g is None else self.g.to(dtype))


def rows_of(
    part: str,
    block: str,
    terms: tuple[LayerStats, ...],
    seen: Evaluation,
    sharing: Sharing,
    dtype: torch.dtype,
) -> Rows:
    """The rows of one block's statistics, in ``dtype``, that of the products that they go into.

    ``auto`` expands where the loss has a term per position (or nothing is shared) and reduces where
    it has one per example, which the loss says; a pattern of block names overrides it.  Channels of a jet are
    always expanded.  With several loss terms A is the mean of their factors and B the sum, which is exact
    where the terms have the same inputs.  Raises ``ConfigError`` if no pattern matches, and
    ``UnsupportedEvidence`` for several terms of a layer of lookups.
    """
    present = [t for t in terms if len(t.inputs)] or list(terms[:1])
    found = [_of_term(part, block, t, seen, sharing, dtype) for t in present]
    return found[0] if len(found) == 1 else _together(part, block, found)


def _together(part: str, block: str, terms: list[Rows]) -> Rows:
    """The rows of several terms as those of one; those of the others are scaled to the first one's weight."""
    first, inputs, grads = terms[0], [], []
    for term in terms:
        if isinstance(term.a, Lookups):
            raise UnsupportedEvidence(
                part, block, "one loss term for a layer of lookups", f"{len(terms)} terms"
            )
        inputs.append(term.a * (term.a_weight / first.a_weight) ** 0.5)
        if term.g is not None:
            grads.append(term.g * (term.g_weight / first.g_weight) ** 0.5)
    return Rows(
        torch.cat(inputs),
        first.a_weight / len(terms),
        torch.cat(grads) if grads else None,
        first.g_weight,
    )


def _of_term(
    part: str, block: str, term: LayerStats, seen: Evaluation, sharing: Sharing, dtype: torch.dtype
) -> Rows:
    a, g = term.inputs, term.grads
    n, s = a.shape[:2]
    if isinstance(a, Lookups) or term.channels:
        sharing = "expand"  # rows of lookups at different places are orthogonal: their mean is no lookup
    rule = sharing if isinstance(sharing, str) else _matching(sharing, part, block)
    if rule == "auto":
        positions = s if g is None else g.shape[2]  # a grouped layer has several rows of inputs at each
        rule = "expand" if seen.terms > 1 or positions == 1 else "reduce"
    if rule == "expand":
        rows = None if g is None else g.flatten(0, 2).to(dtype)
        return Rows(flattened(a, 0, 1).to(dtype), 1.0 / max(n * s, 1), rows, 1.0 / max(n, 1))
    assert isinstance(a, Tensor)
    work = work_dtype(dtype)  # of the sums over positions
    rows = None if g is None else g.to(work).sum(2).flatten(0, 1).to(dtype)
    return Rows(a.to(work).mean(1).to(dtype), 1.0 / max(n, 1), rows, 1.0 / max(n, 1))


def _matching(sharing: Mapping[str, Rule], part: str, block: str) -> Rule:
    """The rule of the first pattern that matches a block's name."""
    for pattern, rule in sharing.items():
        if fnmatchcase(block, pattern):
            return rule
    what = f'{part}: none of the patterns {", ".join(sharing) or "(none)"} matches block "{block}"'
    raise ConfigError(Fault(what, path="sharing", hint='add the pattern "*" = "auto" at the end'))
