"""What every suite is: a ``make`` to write, checks to run, with pytest or without.

class TestMyArrow(StructureConformance):          # with pytest: one test for each check
def make(self):
return MyArrow()

report = StructureConformance.of(MyArrow()).run() # without
"""

from __future__ import annotations

import dataclasses
import traceback
import typing
import warnings
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

from curvlab.errors import CurvlabError, UsageError, place_of, raised
from curvlab.protocols.structure import NaiveFallback
from curvlab.registry.identity import API_VERSION
from curvlab.registry.imports import protocol
from curvlab.registry.obligations import explained
from curvlab.registry.suggest import advice
from curvlab.testing.conformance.check import Check, Mark, Naive, Outcome, Report, Skipped, check
from curvlab.testing.surroundings import Surroundings

CHECK, TEST = "check_", "test_"


class Conformance(ABC):
    """The laws of one kind of part.  A subclass writes ``make``.

    ``expected_failures`` maps a check's name to the reason why this part does not pass it; a check that
    is expected to fail and passes is a failure.  ``api_version`` is the part's: checks that came later
    are skipped.
    """

    kind: ClassVar[str]
    expected_failures: ClassVar[Mapping[str, str]] = {}
    api_version: ClassVar[str] = API_VERSION

    def make(self) -> Any:
        """A new part, always an equal one."""
        raise UsageError(f"{type(self).__name__} does not define make(self), which returns the part to check")

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for name in cls.names():
            if CHECK + name in vars(cls) or not hasattr(cls, TEST + name):
                setattr(cls, TEST + name, _as_test(name, getattr(cls, CHECK + name)))
        unknown = set(cls.expected_failures) - set(cls.names())
        for name in sorted(unknown):
            raise UsageError(
                f'{cls.__name__}.expected_failures: no check "{name}". {advice(name, cls.names(), "Checks")}'
            )

    @classmethod
    def of(
        cls, part: Any, *, api_version: str = API_VERSION, expected_failures: Mapping[str, str] | None = None
    ) -> Conformance:
        """The suite of a part that exists already."""
        settings = {"api_version": api_version, "expected_failures": dict(expected_failures or {})}
        bound: type[Conformance] = type(cls.__name__, (cls,), {"make": lambda self: part, **settings})
        return bound()

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all checks, those of the most general class first."""
        found: dict[str, None] = {}
        for base in reversed(cls.__mro__):
            found.update({n.removeprefix(CHECK): None for n in vars(base) if n.startswith(CHECK)})
        return tuple(found)

    # what is checked

    @cached_property
    def part(self) -> Any:
        """The part, made once; raises ``UsageError`` if it is none of this kind."""
        wanted, who = self.protocol(), f"{type(self).__name__}.make()"
        try:
            made = self.make()
        except TypeError as error:
            if not explained(error):
                raise
            raise UsageError(f"{who}: {explained(error)}") from error
        expected = f"expected a part of kind {self.kind}, a subclass of {_place(wanted)}"
        if isinstance(made, type):
            raise UsageError(
                f"{who} returned the class {made.__name__}; {expected}; "
                f"return an instance, {made.__name__}(…)"
            )
        if not isinstance(made, wanted):
            raise UsageError(f"{who} returned a {type(made).__name__}; {expected}")
        return made

    @classmethod
    def protocol(cls) -> type:
        """The class that parts of this kind are of."""
        return protocol(cls.kind)

    def capabilities(self) -> frozenset[str]:
        """What this part can do, of what checks may ask for."""
        return frozenset()

    def checks(self) -> Iterator[Check]:
        """Every check, bound to the part."""
        for name in self.names():
            method = getattr(self, CHECK + name)
            mark: Mark = getattr(method, "mark", Mark("1.0", ""))
            law = (method.__doc__ or "").strip().splitlines()
            yield Check(name, mark.since, method, mark.capability, law[0] if law else "")

    # running

    def run(self) -> Report:
        """Run every check; never raises for what a part does."""
        return Report(repr(self.part), self.kind, tuple(self.outcome(c) for c in self.checks()))

    def outcome(self, asked: Check) -> Outcome:
        """Run one check, and put the process's surroundings back as they were."""
        reason = self.expected_failures.get(asked.name)
        found = self._attempt(asked)
        if reason is None or found.result == "skip":
            return found
        if found.result == "fail":
            return dataclasses.replace(found, result="xfail", message=reason)
        return Outcome(
            asked.name,
            "fail",
            f"expected to fail ({reason}), and it passes; remove it from expected_failures",
        )

    def named(self, name: str) -> Check:
        """The check of this name."""
        return next(c for c in self.checks() if c.name == name)

    def _attempt(self, asked: Check) -> Outcome:
        if _number(asked.since) > _number(self.api_version):
            return Outcome(
                asked.name,
                "skip",
                f"new in API {asked.since}; the part is written for API {self.api_version}",
            )
        before = Surroundings.now()
        try:
            if asked.capability and asked.capability not in self.capabilities():
                return Outcome(asked.name, "skip", f"not {asked.capability}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NaiveFallback)
                asked.run()
        except Skipped as why:
            return Outcome(asked.name, "skip", str(why))
        except Naive as why:
            return Outcome(asked.name, "naive", str(why))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a part may raise anything, SystemExit included
            return Outcome(asked.name, "fail", _words(error), error)
        finally:
            before.restore()
        return Outcome(asked.name, "pass")

    # what every part owes

    @check()
    def check_settings(self) -> None:
        """A part is a frozen dataclass whose fields are its settings; two of equal settings are equal."""
        part, name = self.part, type(self.part).__name__
        frozen = getattr(type(part), "__dataclass_params__", None)
        assert "__dataclass_fields__" in vars(type(part)), f"{name} is not itself a @dataclass(frozen=True)"
        assert frozen is not None, f"{name} is not a dataclass"
        assert frozen.frozen, f"{name} is a dataclass that is not frozen: write @dataclass(frozen=True)"
        try:
            typing.get_type_hints(type(part), include_extras=True)
        except (NameError, TypeError) as error:
            raise AssertionError(
                f"{name}: the types of its settings cannot be read: {error};"
                " import these types outside `if TYPE_CHECKING`"
            ) from error
        given = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
        assert type(part)(**given) == part, f"{name}: two parts with equal settings are not equal"
        assert name in repr(part), f"the repr of a {name} does not contain its class name: {part!r}"


def _as_test(name: str, method: Callable[..., None]) -> Callable[..., None]:
    """A check as a method that pytest collects."""

    def test(self: Conformance) -> None:
        import pytest

        found = self.outcome(self.named(name))
        if found.result == "skip":
            pytest.skip(found.message)
        if found.result == "xfail":
            pytest.xfail(found.message)
        if found.result == "fail":
            raise AssertionError(found.message) from found.error

    test.__name__ = TEST + name
    test.__doc__ = method.__doc__
    return test


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in version.split("."))


def _words(error: BaseException) -> str:
    """An assertion in its own words; any other error with its type, and where in the part it was raised."""
    known = explained(error)
    if known:
        return known
    if isinstance(error, AssertionError) and str(error):
        return str(error)
    if isinstance(error, CurvlabError):
        return f"{type(error).__name__}: {error}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "curvlab/testing" not in f.filename]
    if place_of(error.__traceback__) or not frames:
        return raised(error)
    return f"{raised(error)} ({frames[-1].filename}:{frames[-1].lineno})"
