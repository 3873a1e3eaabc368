"""States of estimators and preconditioners that learn from squared gradients: sound, and otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field

from curvlab.linalg.vectors import BlockVector


@dataclass
class Squares:
    """Mean squares of single gradients, and how often they were observed."""

    mean: BlockVector
    observed: int = 0


@dataclass
class Late:
    """A state whose average comes with the first evidence."""

    mean: BlockVector | None = None
    observed: int = 0


@dataclass
class Counting(Squares):
    observed: int = field(default=0, metadata={"transient": True})
