"""Tasks that nobody registered, named by import string, with preparations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from curvlab.errors import DataError
from curvlab.protocols.preparation import Preparation
from curvlab.tasks.quadratic import Quadratic
from curvlab.tasks.settings import at_least, check


@dataclass(frozen=True)
class Sums(Preparation):
    """Numbers, written down."""

    minutes: float = 1.5
    data_seed: int = 0
    text: str | None = None
    voices: tuple[str, ...] = ("a", "b")
    kind: Literal["soft", "loud"] = "soft"

    def __post_init__(self) -> None:
        check(at_least(1, minutes=self.minutes))

    def run(self, to: Path, tell: Callable[[str], None]) -> None:
        if to.exists():
            raise DataError(f"{to} is there already")
        to.mkdir()
        (to / "said").write_text(repr(self), encoding="utf-8")
        tell("half way")
        tell("done")


@dataclass(frozen=True)
class Needy(Preparation):
    """Cannot guess."""

    many: int

    def run(self, to: Path, tell: Callable[[str], None]) -> None:
        tell(f"{self.many}")


@dataclass(frozen=True)
class Prepared(Quadratic):
    preparation: ClassVar[type[Preparation] | None] = Sums


@dataclass(frozen=True)
class Undecided(Quadratic):
    preparation: ClassVar[type[Preparation] | None] = Needy
