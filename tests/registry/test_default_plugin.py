"""Core's own parts: every one of them is there, of its kind, and can be configured."""

from __future__ import annotations

import pytest

from curvlab.config.schema import settings_of
from curvlab.registry import PartEntry, discover
from curvlab.registry.imports import part_class
from curvlab.registry.kinds import PROTOCOLS

CORE = discover(plugins=[], strict=True)


@pytest.mark.parametrize("entry", list(CORE.parts()), ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_part_of_core_can_be_imported_and_its_settings_read(entry: PartEntry) -> None:
    settings = settings_of(part_class(entry))
    assert set(entry.preset) <= set(settings)


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_core_has_a_part_of_every_kind(kind: str) -> None:
    assert list(CORE.parts(kind))


def test_every_task_says_where_its_data_come_from() -> None:
    assert all(entry.source for entry in CORE.parts("task"))
