"""The builder of layer statistics: what layers saw, from whatever evaluates them.

An objective adds the calls of a micro-batch, a plain loop those of each of its losses, a differential
equation the points of a term.  Calls are arranged by example as they are added, and merged at the end.

One scale.  The rows that come out are gradients of ℓ_n, the un-averaged loss of an example; where ℓ_n is a
mean over ``positions`` terms, of a term over √positions (``unaveraged``); where a block's rows are not those
of examples (tokens sent to an expert), times √(rows/n) (``thinned``).  Then ``(1/n) Σ g gᵀ`` is the curvature
of the mean loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.lookups import AnyRows
from curvlab.linalg.outer import Outer
from curvlab.model.arrangement import Arrangement, merged
from curvlab.protocols.evidence import LayerStats
from curvlab.protocols.needs import Labels

#: what gradient rows are kept for: statistics of one kind of labels, or the block's own gradient
Kind = Labels | Literal["gradient"]


def unaveraged(examples: int, positions: float = 1) -> float:
    """What gradients of the mean loss L are multiplied by to be rows of ``LayerStats``: n·√positions.

    n makes them gradients of ℓ_n; where ℓ_n is a mean over ``positions`` terms (on average, if examples
    differ in length), each row is that of a term over √positions.
    """
    return float(examples * positions**0.5)


def thinned(rows: int, examples: int) -> float:
    """What gradient rows of ℓ_n are multiplied by where a block has ``rows`` of them: √(rows/n), or 1."""
    return float((rows / examples) ** 0.5) if examples else 1.0


def scaled(rows: Tensor, factor: float) -> Tensor:
    """``factor · rows``; of float16, whose range a factor may leave, in float32."""
    if factor == 1.0:
        return rows
    return (rows.float() if rows.dtype == torch.float16 else rows) * factor


@dataclass
class Merged:
    """All rows of one block; the first ``heard`` rows of inputs are those of statistics."""

    inputs: AnyRows
    grads: dict[Kind, Float[Tensor, "v n s o"]]
    heard: int | None  #: ``None`` if there are rows of the gradient alone

    def outer(self) -> Outer | None:
        """The block's gradient in factors, if rows of it were kept."""
        g = self.grads.get("gradient")
        if g is None:
            return None
        a = self.inputs
        assert isinstance(a, Tensor), "the gradient of a lookup is formed"
        return Outer(g.flatten(0, 2), a.flatten(0, 1))

    def stats(self, kinds: Iterable[Labels], examples: int, scale: float = 1.0) -> dict[Labels, LayerStats]:
        """Statistics of ``examples``, whose gradient rows are multiplied by ``scale``; none if none heard."""
        if self.heard is None:
            return {}
        scale *= thinned(self.heard, examples)
        found = {}
        for kind in kinds:
            g = self.grads.get(kind)
            found[kind] = LayerStats(self.inputs[: self.heard], None if g is None else scaled(g, scale))
        return found


@dataclass
class _Pieces:
    groups: int
    inputs: list[AnyRows] = field(default_factory=list)
    grads: dict[Kind, list[Tensor]] = field(default_factory=dict)
    heard: int | None = None  #: rows of inputs times positions that are of statistics


class StatisticsBuilder:
    """Rows of blocks, piece by piece.  Pieces whose hooks fired come before the others.

    Rows are kept in ``dtype``, or as they come.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._of: dict[str, _Pieces] = {}
        self._dtype = dtype

    def blocks(self) -> list[str]:
        """Those that rows were added of."""
        return list(self._of)

    def add(
        self,
        block: str,
        how: Arrangement,
        inputs: Sequence[AnyRows],
        grads: Mapping[Kind, Sequence[Tensor]],
        *,
        groups: int = 1,
        heard: bool = True,
    ) -> None:
        """The calls of a block in one piece: their inputs ``[m, r, i]`` and gradient rows ``[v, m, s, o]``.

        A kind whose sequence is empty has no rows.  With ``heard`` false they are of the gradient alone.
        """
        pieces = self._of.setdefault(block, _Pieces(groups))
        rows = self._kept(how.inputs(inputs))
        pieces.inputs.append(rows)
        if heard:
            pieces.heard = (pieces.heard or 0) + rows.shape[:2].numel()
        for kind, found in grads.items():
            if found:
                pieces.grads.setdefault(kind, []).append(self._kept(how(found)))

    def _kept(self, rows: Any) -> Any:
        return rows if self._dtype is None else rows.to(self._dtype)

    def take(self, block: str) -> Merged:
        """All rows of a block; its pieces are let go."""
        pieces = self._of.pop(block)
        kinds = list(pieces.grads)
        inputs, grads = merged(pieces.inputs, [pieces.grads.pop(k) for k in kinds], pieces.groups)
        heard = None if pieces.heard is None else pieces.heard // max(inputs.shape[1], 1)
        return Merged(inputs, dict(zip(kinds, grads, strict=True)), heard)
