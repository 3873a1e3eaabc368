"""For tests of the conformance suites: which checks a broken part fails."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, make_dataclass
from typing import Any

import torch

from curvlab.testing.conformance import SUITES

#: counts, so that nothing is twice the same
CALLS = itertools.count()


@dataclass(frozen=True)
class Broken:
    """A part that breaks one law, and the check that finds it; ``also`` must fall with it: ``why``."""

    check: str
    part: Any
    also: tuple[str, ...] = ()
    why: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {type(self.part).__name__}"


def breaking(check: str, base: type, also: tuple[str, ...] = (), why: str = "", **methods: Any) -> Broken:
    """A subclass of ``base`` with other methods, made with ``base``'s own defaults."""
    return Broken(check, broken(base, **methods)(), also, why)


def broken(base: type, **methods: Any) -> Any:
    """A frozen dataclass that does some things otherwise than ``base``."""
    return make_dataclass(f"Broken{base.__name__}", [], bases=(base,), namespace=methods, frozen=True)


def assert_caught(kind: str, case: Broken) -> None:
    """The suite fails this part in its check, says something about it, and fails it in no other."""
    report = SUITES[kind].of(case.part).run()
    assert set(report.failed) == {case.check, *case.also}, {
        o.check: o.message for o in report if o.result == "fail"
    }
    assert report[case.check].message.strip()
    assert bool(case.also) == bool(case.why), "say why two must fall together"


def assert_every_check_is_shown(kind: str, cases: list[Broken], *, elsewhere: tuple[str, ...] = ()) -> None:
    """Each check of a suite has a part that it catches."""
    shown = {c.check for c in cases} | set(elsewhere)
    assert set(SUITES[kind].names()) - shown == set(), "checks that nothing is shown to fail"


def unequal(base: type, *arguments: Any) -> Broken:
    """A part that is equal to itself alone."""
    made = broken(base, __eq__=lambda self, other: self is other, __hash__=object.__hash__)
    return Broken("settings", made(*arguments))


def seeded() -> float:
    """A factor next to 1 that depends on torch's global seed, and draws nothing."""
    return 1 + 1e-15 * (torch.initial_seed() % 2)


def draw() -> None:
    """From the global generator."""
    torch.rand(())


def switch() -> None:
    """A mode of torch, and leave it so."""
    torch.use_deterministic_algorithms(True)
