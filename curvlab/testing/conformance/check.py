"""Checks and what comes of them: a name, a law, an outcome, a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Result = Literal["pass", "naive", "skip", "xfail", "fail"]

F = TypeVar("F", bound=Callable[..., Any])


class Skipped(Exception):
    """A check that does not concern this part; says why."""


class Naive(Exception):
    """A part that is right, by way of a dense matrix; names the methods worth writing."""


@dataclass(frozen=True)
class Check:
    """One law that a part owes.

    ``since`` is the API version that first had it: a part of an older API is not held to it.
    ``capability`` names what a part must be able to do for the law to concern it; ``law`` says it in words.
    """

    name: str
    since: str
    run: Callable[[], None]
    capability: str = ""
    law: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    ``pass``; ``naive``, right but through a dense matrix; ``skip``, it does not concern this part;
    ``xfail``, it failed as its author expected; ``fail``.  ``error`` is what was raised, if anything.
    """

    check: str
    result: Result
    message: str = ""
    error: BaseException | None = None


@dataclass(frozen=True)
class Report:
    """Every check's outcome, in the order of the suite; ``part`` is what was checked."""

    part: str
    kind: str
    outcomes: tuple[Outcome, ...]

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.outcomes)

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, check: str) -> Outcome:
        return next(o for o in self.outcomes if o.check == check)

    def of(self, *results: Result) -> tuple[str, ...]:
        """Names of the checks that ended so."""
        return tuple(o.check for o in self.outcomes if o.result in results)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return self.of("fail")

    def counts(self) -> Mapping[Result, int]:
        """How many checks ended how."""
        results: tuple[Result, ...] = ("pass", "naive", "skip", "xfail", "fail")
        return {r: n for r in results if (n := len(self.of(r)))}

    def require(self) -> None:
        """Raise ``AssertionError`` with every failure, if there is any."""
        wrong = [f"{o.check}: {o.message}" for o in self.outcomes if o.result == "fail"]
        if wrong:
            raise AssertionError("\n".join([f"{self.kind} {self.part} fails {len(wrong)} checks", *wrong]))


@dataclass(frozen=True)
class Mark:
    """What a check says of itself."""

    since: str
    capability: str


def check(since: str = "1.0", capability: str = "") -> Callable[[F], F]:
    """Marks a method ``check_NAME`` of a suite with the API version that first had it."""

    def mark(method: F) -> F:
        method.__dict__["mark"] = Mark(since, capability)
        return method

    return mark
