"""Scripts outside the packages, imported as their own folders see them; Fashion-MNIST where there is none."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest
import torch

from tests.tasks.conftest import fashion as fashion

ROOT = Path(__file__).parents[2]


class Script(Protocol):
    def __call__(self, name: str) -> ModuleType: ...


@pytest.fixture
def script(fashion: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """Imports a script by name, for data of a few small images; what it tells torch is taken back."""
    monkeypatch.setenv("CURVLAB_DATA", fashion)
    for folder in ("asv_benchmarks", "examples/studies"):
        monkeypatch.syspath_prepend(ROOT / folder)
    images = importlib.import_module("training").images
    images.cache_clear()
    yield importlib.import_module
    images.cache_clear()
    torch.set_flush_denormal(False)
