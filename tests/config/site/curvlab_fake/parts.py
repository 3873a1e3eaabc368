"""Parts whose settings have every shape that a configuration can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from curvlab.errors import CapabilityError, ConfigError, Fault
from curvlab.linalg.compose import BlockDiagonal
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Step
from curvlab.protocols.needs import Needs
from curvlab.protocols.schedule import Schedule
from curvlab.protocols.step import StepRule
from curvlab.protocols.structure import Family, Gram, Group
from curvlab.structures.dense import Dense, DenseMatrix


@dataclass(frozen=True)
class Shear(Family, Group):
    """A Group that is no Gram."""

    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size {self.size} is too small for a shear")

    def project(self, S: torch.Tensor) -> DenseMatrix:
        return Dense().project(S)

    def scalars(self, d: int) -> int:
        return d * d

    def member(self, A: torch.Tensor) -> DenseMatrix:
        return Dense().member(A)


class Voice(Enum):
    """An enumeration of strings."""

    HIGH = "high"
    LOW = "low"


@dataclass(frozen=True)
class Layered(CurvatureEstimator[None]):
    """Asks for Grams in ``__post_init__``, as parts that need two capabilities do."""

    A: Family = field(default_factory=Dense)
    B: Family = field(default_factory=Dense)
    voice: Voice = Voice.HIGH
    decay: float = 0.95

    def __post_init__(self) -> None:
        for family in (self.A, self.B):
            if not isinstance(family, Gram):
                raise CapabilityError(
                    Fault(f"{type(family).__name__} is a Group, not a Gram", hint="take dense or diagonal")
                )

    def needs(self) -> Needs:
        return Needs()

    def init(self, like: Any, ctx: Any) -> None:
        return None

    def observe(self, state: None, seen: Any, ctx: Any) -> None:
        return None

    def curvature(self, state: None) -> Any:
        return BlockDiagonal({})


@dataclass(frozen=True)
class Typed(CurvatureEstimator[None]):
    """Asks for a Gram by its field's type."""

    factor: Gram = field(default_factory=Dense)

    def needs(self) -> Needs:
        return Needs()

    def init(self, like: Any, ctx: Any) -> None:
        return None

    def observe(self, state: None, seen: Any, ctx: Any) -> None:
        return None

    def curvature(self, state: None) -> Any:
        return BlockDiagonal({})


@dataclass(frozen=True)
class Grid:
    """A record: settings of their own, but no part."""

    points: int = 5
    spacing: float = 0.1


@dataclass(frozen=True)
class Picky(StepRule[None]):
    """One setting of each plain type, and parts in every container."""

    count: int
    mood: Literal["calm", "wild"] = "calm"
    lr: float | Schedule = 0.1
    widths: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")
    rates: Mapping[str, float] = field(default_factory=dict)
    level: Annotated[float, Field(ge=0, le=1)] = 0.5
    flag: bool = False
    note: str | None = None
    grid: Grid = Grid()
    then: StepRule[Any] | None = None
    others: tuple[StepRule[Any], ...] = ()
    routes: Mapping[str, StepRule[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError(Fault(f"count = {self.count} must not be negative", path="count"))
        if self.flag and self.note is None:
            raise ConfigError(Fault("a flag needs a note", hint="write note"))

    def rate(self, step: int) -> float:
        return 0.1

    def init(self, like: Any) -> None:
        return None

    def search(self, state: None, line: Any, step: int) -> Step:
        return Step(line.update, 0.1)
