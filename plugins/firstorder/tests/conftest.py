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
    """Core and this plugin, nothing else."""
    plugin = Candidate(
        "firstorder", "curvlab-firstorder", "0", lambda: importlib.import_module("curvlab_firstorder")
    )
    return discover(plugins=[plugin], strict=True)


@pytest.fixture
def optimizer(registry: Registry) -> Optimizers:
    """``optimizer(method, model, **knobs)`` in float64."""

    def make(name: str, model: nn.Module, **knobs: Any) -> CurvatureOptimizer:
        return CurvatureOptimizer(
            build_method(registry, name, knobs), model, backend=Full("float64"), name=name
        )

    return make
