"""The first-party methods by name, whether their plugins are installed or only on the path."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from torch import nn

from curvlab.config import build_method
from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.precision.full import Full
from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate


@lru_cache(maxsize=1)
def registry() -> Registry:
    """Core, firstorder and kfac, nothing else."""
    names = ("firstorder", "kfac")
    return discover(
        plugins=[
            Candidate(n, f"curvlab-{n}", "0", lambda n=n: importlib.import_module(f"curvlab_{n}"))
            for n in names
        ],
        strict=True,
    )


def composed(name: str, settings: dict[str, Any] | None = None, **knobs: Any) -> Method:
    """The method of this name."""
    return build_method(registry(), name, knobs, settings)


def optimizer(name: str, model: nn.Module, *, seed: int = 0, **knobs: Any) -> CurvatureOptimizer:
    """The method of this name on ``model``, in float64 if the model is."""
    like = next(model.parameters())
    backend = Full("float64" if like.element_size() == 8 else "float32")
    return CurvatureOptimizer(composed(name, **knobs), model, backend=backend, seed=seed, name=name)
