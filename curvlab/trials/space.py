"""The settings that trials differ in: their ranges by dotted key, and points among them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from curvlab.config.layers import Layers, keys_of
from curvlab.config.merge import merge
from curvlab.config.tree import Node, describe, dotted, plain
from curvlab.errors import Fault
from curvlab.trials.ranges import EXPECTED, HINT, Interval, Range, is_range, range_of

#: the first bases of a Halton sequence; beyond these dimensions its points are correlated
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
#: the rank of a trial's values: later than every file and ``--set``
_RANK = 1_000_000
#: so many points of the sequence are looked at for each that is wanted
_PATIENCE = 200
#: settings that name each trial, and cannot differ by the user's choice
_TAKEN = ("run.name",)

#: a value for each key of a space
Point = Mapping[str, Node]


@dataclass(frozen=True)
class Space:
    """Ranges by dotted key, in the order in which they were written."""

    ranges: Mapping[str, Range]

    @classmethod
    def of(cls, table: Node, faults: list[Fault]) -> Space:
        """From a table whose keys are those of ``--set``, quoted or nested; adds to ``faults``."""
        if not table.is_table:
            faults.append(table.fault(f"expected a table of ranges, got {table.value!r}"))
            return cls({})
        found: dict[str, Range] = {}
        for key, node in _leaves(table, (), faults):
            if key in found or key in _TAKEN:
                what = "each trial has a name of its own" if key in _TAKEN else "is given twice"
                faults.append(node.fault(f"{key}: {what}", f"remove {key}"))
            elif (one := range_of(node, faults)) is not None:
                found[key] = one
        return cls(found)

    def grid(self) -> Iterator[Point]:
        """Every combination; the last key varies first.  Intervals must have ``points``."""
        values = [one.grid() for one in self.ranges.values()]
        for point in itertools.product(*values):
            yield dict(zip(self.ranges, point, strict=True))

    @property
    def combinations(self) -> int | None:
        """How many points the grid has; ``None`` if an interval has no ``points``."""
        if self.without_points:
            return None
        return math.prod(len(one.grid()) for one in self.ranges.values())

    @property
    def without_points(self) -> dict[str, Interval]:
        """The intervals that a grid cannot divide."""
        return {k: r for k, r in self.ranges.items() if isinstance(r, Interval) and r.points is None}

    def halton(self, count: int, seed: int) -> Iterator[Point]:
        """``count`` points of a Halton sequence, shifted modulo 1 by a vector drawn with ``seed``.

        No point occurs twice, so that there are fewer where a space of lists holds no more.  Source:
        J. H. Halton, Numerische Mathematik 2 (1960); the shift is that of R. Cranley and T. N. L. Patterson,
        SIAM J. Numer. Anal. 13 (1976).
        """
        draw = random.Random(seed)
        shifts = [draw.random() for _ in self.ranges]
        seen: set[str] = set()
        for k in range(1, _PATIENCE * count + 1):
            places = [(radical_inverse(k, PRIMES[d]) + shift) % 1.0 for d, shift in enumerate(shifts)]
            pairs = zip(self.ranges.items(), places, strict=True)
            point = {key: one.at(place) for (key, one), place in pairs}
            text = repr(values_of(point))
            if text not in seen:
                seen.add(text)
                yield point
            if len(seen) == count:
                return

    def samples(self) -> Iterator[Point]:
        """Points among which every listed value and every end of an interval occurs at least once."""
        first = {key: one.samples[0] for key, one in self.ranges.items()}
        yield first
        for key, one in self.ranges.items():
            for node in one.samples[1:]:
                yield {**first, key: node}


def radical_inverse(index: int, base: int) -> float:
    """The digits of ``index`` in ``base``, mirrored at the point: a number in [0, 1)."""
    found, scale = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        found += digit * scale
        scale /= base
    return found


def at_point(base: Layers, point: Point, name: str, faults: list[Fault]) -> Layers:
    """The configuration of one trial: ``base`` with the values of ``point`` and ``run.name``."""
    tree = base.tree
    for key, node in {**point, "run.name": Node(name, base.tree.origin)}.items():
        layer = _ranked(node)
        for part in reversed(keys_of(key)):
            layer = Node({str(part): layer}, layer.origin)
        tree = merge(tree, layer, faults)
    return Layers(tree, as_written(tree))


def run_faults(tree: Node) -> list[Fault]:
    """What is wrong with ``run`` and ``run.name``, which the name of a trial would hide."""
    run = tree.table.get("run")
    if run is None:
        return []
    if not run.is_table:
        return [
            run.fault(f"expected a table, got {describe(plain(run))}", "for example { epochs = 10 }", "run")
        ]
    name = run.table.get("name")
    if name is None or isinstance(name.value, str):
        return []
    return [name.fault(f"expected a string, got {describe(plain(name))}", "", "run.name")]


def values_of(point: Point) -> dict[str, Any]:
    """The values of a point without their places."""
    return {key: plain(node) for key, node in point.items()}


def as_written(tree: Node) -> str:
    """The configuration without what the defaults say, as TOML."""
    import tomli_w

    return tomli_w.dumps(plain(_without_defaults(tree) or Node({}, tree.origin)))


def _without_defaults(node: Node) -> Node | None:
    if not node.is_table:
        return node if node.origin.given else None
    kept = {key: below for key, child in node.table.items() if (below := _without_defaults(child))}
    return Node(kept, node.origin) if kept or node.origin.given else None


def _leaves(node: Node, path: tuple[str, ...], faults: list[Fault]) -> Iterator[tuple[str, Node]]:
    for written, child in node.table.items():
        keys = keys_of(written) if "." in written else (written,)
        if not keys:
            hint = 'write a dotted key in quotes, as "method.lr"'
            faults.append(child.fault(f'"{written}" is not a key', hint))
            continue
        inner = (*path, *map(str, keys))
        if is_range(child):
            yield dotted(inner), child
        elif child.is_table and child.table:
            yield from _leaves(child, inner, faults)
        else:
            faults.append(child.fault(f"{EXPECTED}, got {plain(child)!r}", HINT))


def _ranked(node: Node) -> Node:
    """The node as a layer above all files, with the place where it was written."""
    value: Any = node.value
    if isinstance(value, dict):
        value = {key: _ranked(child) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_ranked(child) for child in value]
    return Node(value, replace(node.origin, rank=_RANK))
