"""Looking names up."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvlab.errors import ConfigError, PluginError
from curvlab.registry import MethodEntry, Registry
from curvlab.registry.kinds import KINDS, PROTOCOLS


@pytest.fixture
def registry() -> Registry:
    found = Registry("dist", "1.0")
    found.add("step", "rate", "pkg.steps:Rate", summary="a rate")
    found.add("step", "armijo", "pkg.steps:Armijo", summary="a search")
    found.add("task", "digits", "pkg.tasks:Digits", summary="digits", source="inside a wheel")
    found.add("precision", "float64", "pkg.full:Full", summary="double", dtype="float64")
    return found


def test_an_entry_holds_all_that_was_said(registry: Registry) -> None:
    entry = registry.part("precision", "float64")
    assert (entry.kind, entry.name, entry.factory) == ("precision", "float64", "pkg.full:Full")
    assert entry.preset == {"dtype": "float64"}
    assert entry.origin == "dist 1.0"
    assert registry.part("task", "digits").source == "inside a wheel"


def test_a_near_miss_is_suggested_and_the_kind_listed(registry: Registry) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.part("step", "armjo")
    (fault,) = caught.value.faults
    assert fault.message == 'unknown step "armjo"'
    assert fault.hint == 'Did you mean "armijo" (dist 1.0)?  Known: armijo, rate.'


def test_a_name_of_another_kind_is_pointed_out(registry: Registry) -> None:
    with pytest.raises(ConfigError, match='"digits" is the name of a task'):
        registry.part("step", "digits")


def test_a_distribution_picks_its_own_part_only(registry: Registry) -> None:
    assert registry.part("step", "dist:rate").name == "rate"
    with pytest.raises(ConfigError, match='unknown step "dist:digits"'):
        registry.part("step", "dist:digits")


def test_an_import_path_names_a_part_that_nobody_registered(registry: Registry) -> None:
    entry = registry.part("step", "my.module:Thing")
    assert (entry.factory, entry.distribution, entry.origin) == ("my.module:Thing", "", "imported by path")
    assert registry.use(entry) == "my.module:Thing"


def test_entries_are_listed_by_kind_then_name(registry: Registry) -> None:
    listed = [(e.kind, e.name) for e in registry.parts()]
    assert listed == [("step", "armijo"), ("step", "rate"), ("precision", "float64"), ("task", "digits")]
    assert [e.name for e in registry.parts("step")] == ["armijo", "rate"]


def test_absorbing_takes_all_or_nothing(registry: Registry) -> None:
    other = Registry("dist", "1.0")
    other.add("step", "new", "pkg:New", summary="x")
    other.add("step", "rate", "pkg:Other", summary="x")
    before = registry.keys()
    with pytest.raises(PluginError, match='step "rate" is registered twice by dist'):
        registry.absorb(other)
    assert registry.keys() == before


def test_method_files_are_found_in_a_package_by_their_stems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "pkg_with_methods"
    (package / "methods").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "methods" / "b.toml").write_text('[about]\nsummary = "bé"\n', encoding="utf-8")
    (package / "methods" / "a.toml").write_text("not toml [")
    (package / "methods" / "notes.txt").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("dist", "1.0")
    registry.methods("pkg_with_methods")
    assert [e.name for e in registry.method_entries()] == ["a", "b"]
    assert registry.method("b").summary == "bé"
    assert registry.method("b").path == "pkg_with_methods/methods/b.toml"
    with pytest.raises(PluginError, match=r'pkg_with_methods/methods/a\.toml:1:5: method "a" is not TOML'):
        _ = registry.method("a").summary


def test_a_summary_that_is_no_string_is_the_plugins_fault() -> None:
    with pytest.raises(PluginError, match=r"x\.toml: about\.summary"):
        _ = MethodEntry("x", "x.toml", "[about]\nsummary = 3\n").summary


def test_every_kind_but_the_method_has_a_protocol() -> None:
    assert set(KINDS) == {*PROTOCOLS, "method"}


def test_what_is_added_after_a_listing_is_in_the_next_one_at_its_place() -> None:
    registry = Registry("d", "1")
    registry.add("step", "second", "package.module:Class", summary="one line")
    assert [e.name for e in registry.parts("step")] == ["second"]
    registry.add("step", "first", "package.module:Class", summary="one line")
    assert [e.name for e in registry.parts("step")] == ["first", "second"]
    assert registry.part("step", "first").name == "first"
