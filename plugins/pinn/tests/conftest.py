"""The plugin as a registry finds it, whether it is installed or only on the path."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from curvlab.config import build_method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.precision.full import Full
from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate

Optimizers = Callable[..., CurvatureOptimizer]


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Core, this plugin, and the one that its fallback comes from."""
    found = []
    for name in ("firstorder", "kfac", "pinn"):
        load = lambda name=name: importlib.import_module(f"curvlab_{name}")  # noqa: E731
        found.append(Candidate(name, f"curvlab-{name}", "0", load))
    return discover(plugins=found, strict=True)


@pytest.fixture
def optimizer(registry: Registry) -> Optimizers:
    """``optimizer(method, model, settings=…, **knobs)`` in float64."""

    def make(
        name: str, model: nn.Module, *, settings: dict[str, Any] | None = None, **knobs: Any
    ) -> CurvatureOptimizer:
        method = build_method(registry, name, knobs, settings)
        return CurvatureOptimizer(method, model, backend=Full("float64"), name=name)

    return make
