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
from curvlab.protocols.report import Event
from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate

Optimizers = Callable[..., CurvatureOptimizer]


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Core and this plugin, nothing else."""
    plugin = Candidate("lbfgs", "curvlab-lbfgs", "0", lambda: importlib.import_module("curvlab_lbfgs"))
    return discover(plugins=[plugin], strict=True)


@pytest.fixture
def optimizer(registry: Registry) -> Optimizers:
    """``optimizer(model, settings=…, events=…, **knobs)``: the method, in the dtype of the model."""

    def make(
        model: nn.Module,
        *,
        settings: dict[str, Any] | None = None,
        events: list[Event] | None = None,
        **knobs: Any,
    ) -> CurvatureOptimizer:
        wide = next(model.parameters()).element_size() == 8
        return CurvatureOptimizer(
            build_method(registry, "lbfgs", knobs, settings),
            model,
            backend=Full("float64" if wide else "float32"),
            name="lbfgs",
            on_event=None if events is None else events.append,
        )

    return make
