"""For tests of the conformance suites: which checks a broken part fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from types import MappingProxyType
from typing import Any

import pytest
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


def assert_every_check_is_shown(
    kind: str, cases: Sequence[Broken], *, elsewhere: tuple[str, ...] = ()
) -> None:
    """Each check of a suite has a part that it catches."""
    shown = {c.check for c in cases} | set(elsewhere)
    assert set(SUITES[kind].names()) - shown == set(), "checks that nothing is shown to fail"


def frame(
    every: Mapping[str, Sequence[Broken]],
    sound: Sequence[tuple[str, Any]],
    *,
    elsewhere: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    nor: tuple[str, ...] = ("fail",),
) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """The three tests of a file: broken parts are caught, every check catches one, sound parts pass.

    By kind of part.  ``elsewhere``: checks that other tests show; ``nor``: results that no sound part has.
    """

    @pytest.mark.parametrize(
        ("kind", "case"), [pytest.param(k, c, id=f"{k} {c}") for k, cases in every.items() for c in cases]
    )
    def caught(kind: str, case: Broken) -> None:
        assert_caught(kind, case)

    @pytest.mark.parametrize("kind", every)
    def shown(kind: str) -> None:
        assert_every_check_is_shown(kind, every[kind], elsewhere=elsewhere.get(kind, ()))

    named = [pytest.param(k, part, id=f"{k}-{type(part).__name__}") for k, part in sound]

    @pytest.mark.parametrize(("kind", "part"), named)
    def passes(kind: str, part: Any) -> None:
        assert not SUITES[kind].of(part).run().of(*nor)

    return caught, shown, passes


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
