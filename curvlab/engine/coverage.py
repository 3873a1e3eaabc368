"""How each parameter is treated, and the warning for a method that treats few of them itself."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from curvlab.engine.arms import Arms
from curvlab.errors import CoverageError, Fault
from curvlab.model.partition import empty
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.pieces import whole

#: treatment of a parameter that is in no block
FROZEN = "frozen"
#: the least share of the trained numbers that a method treats itself without a warning
HALF = 0.5
#: how many different reasons a message gives
REASONS = 4


class CoverageWarning(UserWarning):
    """The method treats less than half of the model itself."""


@dataclass(frozen=True)
class Coverage:
    """How one parameter is treated, and if not by the method itself, why not."""

    parameter: str
    shape: tuple[int, ...]
    block: str
    treatment: str
    reason: str = ""

    def as_row(self) -> Mapping[str, Any]:
        """A plain dictionary for JSON."""
        return {
            "parameter": self.parameter,
            "shape": list(self.shape),
            "block": self.block,
            "treatment": self.treatment,
            "reason": self.reason,
        }

    @property
    def size(self) -> int:
        """Numbers in the parameter."""
        size = 1
        for d in self.shape:
            size *= d
        return size


def joined(rows: Sequence[Coverage], shapes: Mapping[str, tuple[int, ...]]) -> list[Coverage]:
    """One row for the pieces of a parameter that are treated alike; ``shapes`` of whole parameters."""
    of: dict[str, list[Coverage]] = {}
    for row in rows:
        of.setdefault(whole(row.parameter), []).append(row)
    found = []
    for name, pieces in of.items():
        if len(pieces) > 1 and len({(row.treatment, row.reason) for row in pieces}) == 1:
            found.append(replace(pieces[0], parameter=name, shape=shapes[name]))
        else:
            found.extend(pieces)
    return found


def coverage_of(model: nn.Module, arms: Arms, blocks: Blocks, frozen: Iterable[str]) -> list[Coverage]:
    """How each parameter is treated, in the model's order; ``frozen`` names those in no block.

    A parameter whose rows are in several blocks is listed once, unless they are treated apart.
    """
    named = dict(model.named_parameters())
    rows, reasons = list[Coverage](), empty(model)
    for arm in arms.members:
        for block in arm.blocks.members:
            reason = arms.refusal(blocks, block)
            for n in block.parameters:
                rows.append(Coverage(n, tuple(arm.blocks.shape(n)), block.name, arm.treatment, reason))
    for n in frozen:
        reason = reasons.get(n, "requires_grad is False")
        rows.append(Coverage(n, tuple(named[n].shape), "", FROZEN, reason))
    shapes = {n: tuple(p.shape) for n, p in named.items()}
    order = {n: k for k, n in enumerate(shapes)}
    return sorted(joined(rows, shapes), key=lambda row: order[whole(row.parameter)])


def shortfall(name: str, rows: Sequence[Coverage]) -> str:
    """The message for a method that treats less than half of the trained numbers; empty if it treats more."""
    trained = [r for r in rows if r.treatment != FROZEN and r.size]
    own = [r for r in trained if not r.reason]
    total, mine = sum(r.size for r in trained), sum(r.size for r in own)
    if not total or mine >= HALF * total:
        return ""
    others = Counter(r.reason for r in trained if r.reason)
    why = "; ".join(f"{reason} ({n})" for reason, n in others.most_common(REASONS))
    more = "" if len(others) <= REASONS else f"; {len(others) - REASONS} more reasons in optimizer.coverage()"
    share = f"{len(own)} of {len(trained)} parameters" if own else f"none of {len(trained)} parameters"
    percent = f" ({100 * mine / total:.0f} % of the elements)" if own else ""
    return f'method "{name}" treats {share}{percent}; its fallback trains the rest: {why}{more}'


def report(name: str, rows: Sequence[Coverage], *, strict: bool) -> None:
    """Warn of a shortfall; raises ``CoverageError`` instead if ``strict``."""
    said = shortfall(name, rows)
    if said and strict:
        raise CoverageError(
            Fault(said, hint="remove strict=True to train these parameters with the fallback")
        )
    if said:
        warnings.warn(said, CoverageWarning, stacklevel=4)
