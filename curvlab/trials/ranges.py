"""The range of one setting: a list of values, or an interval of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from curvlab.config.tree import Node, describe
from curvlab.errors import Fault

#: the keys of an interval
LOW, HIGH, LOG, POINTS = "low", "high", "log", "points"
#: significant digits of a number between the ends
_DIGITS = 6
#: what a range may be, in the words of an error message
EXPECTED = "expected a list of values or { low = a, high = b }"
HINT = "a setting with one value belongs in its own table; more keys of an interval: log = true, points = N"


@dataclass(frozen=True)
class Choices:
    """One of several values, each with the place where it was written; a value may be a table."""

    values: tuple[Node, ...]

    def grid(self) -> list[Node]:
        """Every value."""
        return list(self.values)

    def at(self, quantile: float) -> Node:
        """The value at a quantile in [0, 1): each has an equal share."""
        return self.values[int(quantile * len(self.values))]

    @property
    def samples(self) -> list[Node]:
        """The values to check: all."""
        return list(self.values)


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included; whole numbers if both ends are.

    With ``log`` quantiles are equally spaced in the logarithm.  ``points`` is the number of values that a
    grid takes; other searches draw from the whole interval.
    """

    low: float
    high: float
    log: bool
    points: int | None
    node: Node

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def grid(self) -> list[Node]:
        """``points`` values with the ends among them; of whole numbers that coincide, one."""
        assert self.points is not None, "a grid was asked of an interval without points"
        parts = [k / (self.points - 1) for k in range(self.points)]
        return [self._node(value) for value in dict.fromkeys(self._between(part) for part in parts)]

    def at(self, quantile: float) -> Node:
        """The value at a quantile in [0, 1); each whole number has an equal share, of the logarithm if so."""
        if not self.whole:
            return self._node(self._between(quantile))
        below, above = (self.low, self.high + 1)
        if self.log:
            value = below * (above / below) ** quantile
        else:
            value = below + (above - below) * quantile
        return self._node(min(max(int(value), int(self.low)), int(self.high)))

    @property
    def samples(self) -> list[Node]:
        """The values to check: the ends."""
        return [self._node(self.low), self._node(self.high)]

    def _between(self, part: float) -> float:
        if part in (0, 1):
            return self.high if part else self.low
        if self.log:
            value = math.exp(math.log(self.low) + part * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + part * (self.high - self.low)
        value = round(value) if self.whole else float(f"{value:.{_DIGITS}g}")
        return min(max(value, self.low), self.high)

    def _node(self, value: float) -> Node:
        return Node(value, self.node.origin)


Range = Choices | Interval


def is_range(node: Node) -> bool:
    """Whether a node is written as a range; a table without ``low`` and ``high`` leads to deeper keys."""
    return isinstance(node.value, list) or (node.is_table and bool({LOW, HIGH} & node.table.keys()))


def range_of(node: Node, faults: list[Fault]) -> Range | None:
    """The range that a node describes; ``None`` if it has faults, which are added to ``faults``."""
    if isinstance(node.value, list):
        if node.value:
            return Choices(tuple(node.value))
        faults.append(node.fault("the list of values is empty", "add at least one value"))
        return None
    if not is_range(node):
        faults.append(node.fault(f"{EXPECTED}, got {describe(node.value)}", HINT))
        return None
    found = list(_interval_faults(node))
    faults += found
    if found:
        return None
    given = {key: child.value for key, child in node.table.items()}
    return Interval(given[LOW], given[HIGH], given.get(LOG, False), given.get(POINTS), node)


def _interval_faults(node: Node) -> list[Fault]:
    """What is wrong with an interval, each at its own place."""
    table = node.table
    found = [
        child.fault(f"unknown key {key} of an interval", f"Keys: {LOW}, {HIGH}, {LOG}, {POINTS}.")
        for key, child in table.items()
        if key not in (LOW, HIGH, LOG, POINTS)
    ]
    found += [node.fault(f"{key} is missing", f"add {key} = …") for key in (LOW, HIGH) if key not in table]
    ends = [table[key] for key in (LOW, HIGH) if key in table]
    wrong = [end for end in ends if not _is_number(end.value)]
    found += [end.fault(f"expected a finite number, got {describe(end.value)}") for end in wrong]
    log, points = table.get(LOG), table.get(POINTS)
    if log is not None and not isinstance(log.value, bool):
        found.append(log.fault(f"expected true or false, got {describe(log.value)}"))
    if points is not None and (not _is_number(points.value) or isinstance(points.value, float)):
        found.append(points.fault(f"expected a whole number, got {describe(points.value)}"))
    elif points is not None and points.value < 2:
        found.append(points.fault(f"points must be at least 2, got {points.value}", "the ends are points"))
    if found or len(ends) < 2:
        return found
    low, high = ends
    if low.value >= high.value:
        found.append(high.fault(f"high must be above low = {low.value}, got {high.value}"))
    if log is not None and log.value and low.value <= 0:
        found.append(low.fault(f"low must be positive with log = true, got {low.value}"))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
