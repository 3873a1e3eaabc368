"""A prepared folder, and an environment that names none."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvlab_speech import folder
from plugins.speech.tests.samples import corpus, manifest


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder as ``tasks prepare`` leaves it."""
    folder.write(tmp_path / "speech", corpus(), manifest())
    return tmp_path / "speech"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CURVLAB_DATA", raising=False)
