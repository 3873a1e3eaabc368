"""Import strings: what they may name, and who is to blame if they cannot."""

from __future__ import annotations

import pytest

from curvlab.errors import ConfigError, PluginError
from curvlab.parts.steps import Rate
from curvlab.registry import PartEntry
from curvlab.registry.imports import is_import_string, part_class, protocol
from curvlab.registry.kinds import PROTOCOLS


@pytest.mark.parametrize("text", ["a:B", "a.b_c:D", "a.b:C.D", "_a:_b"])
def test_a_module_a_colon_and_a_name_are_an_import_string(text: str) -> None:
    assert is_import_string(text)


@pytest.mark.parametrize("text", ["a", "a.b", ":B", "a:", "a-b:C", "a:B:C", "a b:C", "1a:B", ""])
def test_anything_else_is_none(text: str) -> None:
    assert not is_import_string(text)


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_every_protocol_can_be_imported(kind: str) -> None:
    assert isinstance(protocol(kind), type)


def test_a_part_is_imported_when_it_is_asked_for() -> None:
    assert part_class(PartEntry("step", "rate", "curvlab.parts.steps:Rate", "x", distribution="d")) is Rate


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("no.such:Thing", "cannot be imported: ModuleNotFoundError"),
        ("curvlab.parts.steps:Nothing", "cannot be imported: AttributeError"),
        ("curvlab.parts.damping:Constant", "is not a subclass of curvlab.protocols.step.StepRule"),
        ("math:pi", "is not a subclass"),
        ("curvlab.protocols.step:StepRule", "is not a dataclass"),
    ],
)
def test_who_named_it_is_to_blame(factory: str, says: str) -> None:
    with pytest.raises(PluginError, match='step "x"') as plugins:
        part_class(PartEntry("step", "x", factory, "x", distribution="d", version="1"))
    with pytest.raises(ConfigError) as users:
        part_class(PartEntry("step", factory, factory, ""))
    assert says in str(plugins.value)
    assert says in str(users.value)
    assert "PYTHONPATH" in str(users.value)
