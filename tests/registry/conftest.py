"""Registries from fake distributions, whatever is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curvlab.registry import Registry, discover
from curvlab.registry.loader import candidates
from tests.registry.sites import write_distribution

RegistryWith = Callable[..., Registry]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path``; modules that are imported from it are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def registry_with(site: Path) -> RegistryWith:
    """``registry_with({name: source})``: core, and a distribution ``dist-name`` for each source of a plugin.

    They are found by their entry points; ``options`` go to ``discover``.
    """

    def make(sources: dict[str, str], **options: Any) -> Registry:
        for name, source in sources.items():
            write_distribution(site, f"dist-{name}", {f"mod_{name}": source}, {name: f"mod_{name}"})
        ours = {f"dist-{name}" for name in sources}
        return discover(plugins=[c for c in candidates() if c.distribution in ours], **options)

    return make
