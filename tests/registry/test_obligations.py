"""What a class still owes its protocol, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from curvlab.errors import PluginError
from curvlab.protocols.krylov import Krylov
from curvlab.protocols.step import Damping
from curvlab.registry import PartEntry
from curvlab.registry.imports import part_class
from curvlab.registry.kinds import PROTOCOLS
from curvlab.registry.obligations import explained, in_words, unmet
from tests.limits.registered import registry


@dataclass(frozen=True)
class Idle(Krylov):
    """A solver that does not solve."""

    @property
    def limit(self) -> int:
        return 1


@dataclass(frozen=True)
class Undecided(Damping[None]):
    """Of which nothing is written."""


def test_what_is_not_written_is_named_with_its_arguments_and_what_it_must_do() -> None:
    (owed,) = unmet(Idle)
    assert owed.method == "solve"
    assert owed.protocol == "curvlab.protocols.krylov.Krylov"
    assert owed.signature == "solve(self, A, b, *, x0=…, M=…, pairs=…)"
    assert owed.owes.startswith("``A x = b`` from ``x0``")
    assert in_words(Idle).startswith("Idle does not define\n  solve(self, A, b, *, x0=")


def test_every_method_that_is_missing_is_listed() -> None:
    assert [o.method for o in unmet(Undecided)] == ["at", "init"]
    assert "at(self, state, step), required by curvlab.protocols.step.Damping: λ for this step." in in_words(
        Undecided
    )


def test_a_class_that_is_whole_owes_nothing() -> None:
    for entry in registry().parts():
        assert in_words(part_class(entry)) == ""


def test_pythons_own_error_is_explained_and_others_are_not() -> None:
    with pytest.raises(TypeError) as caught:
        Idle()  # type: ignore[abstract]
    assert explained(caught.value) == in_words(Idle)
    assert explained(TypeError("unsupported operand")) == ""
    assert explained(ValueError("Can't instantiate abstract class Idle")) == ""


def entry(kind: str, name: str) -> PartEntry:
    return PartEntry(kind, "x", f"{__name__}:{name}", "x", distribution="dist", version="1")


def test_a_part_with_an_obligation_unmet_is_refused_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here(monkeypatch)
    with pytest.raises(PluginError) as caught:
        part_class(entry("krylov", "Idle"))
    said = str(caught.value)
    assert 'krylov "x" (dist 1)' in said
    assert "Idle does not define\n  solve(self, A, b" in said


def test_a_part_of_another_kind_is_told_which_kind_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    with pytest.raises(PluginError) as caught:
        part_class(entry("step", "Idle"))
    said = str(caught.value)
    assert f"is not a subclass of {PROTOCOLS['step'].replace(':', '.')}" in said
    assert 'expected kind "step", but Idle has kind "krylov"' in said


def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this file importable by the name that it has."""
    import sys

    module: Any = type(sys)(__name__)
    module.__dict__.update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)
