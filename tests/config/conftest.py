"""A registry of core and the fake plugin of ``site/``, whatever is installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate

SITE = Path(__file__).parent / "site"


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Core and ``curvlab-fake``, whose folder is not left on the path: other tests would find it there."""
    sys.path.insert(0, str(SITE))
    try:
        module = importlib.import_module("curvlab_fake")
    finally:
        sys.path.remove(str(SITE))
    return discover(plugins=[Candidate("fake", "curvlab-fake", "1.2", lambda: module)], strict=True)


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed plugins are ``curvlab-fake`` alone, found by its entry point."""
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv("CURVLAB_PLUGINS", "curvlab-fake")
    monkeypatch.delenv("CURVLAB_DISABLE_PLUGINS", raising=False)
    monkeypatch.delenv("CURVLAB_STRICT", raising=False)
