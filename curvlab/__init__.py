"""curvlab: second-order optimizers for PyTorch, composed from parts.

The public face.  Importing it costs next to nothing: torch is imported when a name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

#: the one place where the version is written
__version__ = "0.1.0"

if TYPE_CHECKING:
    from curvlab.api import optimizer, train
    from curvlab.engine.coverage import CoverageWarning
    from curvlab.engine.optimizer import CurvatureOptimizer
    from curvlab.objectives.mismatch import LayerMismatch
    from curvlab.objectives.supervised import objective
    from curvlab.registry.hookspecs import hookimpl

__all__ = [
    "CoverageWarning",
    "CurvatureOptimizer",
    "LayerMismatch",
    "__version__",
    "hookimpl",
    "objective",
    "optimizer",
    "train",
]

#: public name -> the module that defines it
_HOMES = {
    "CoverageWarning": "curvlab.engine.coverage",
    "CurvatureOptimizer": "curvlab.engine.optimizer",
    "LayerMismatch": "curvlab.objectives.mismatch",
    "hookimpl": "curvlab.registry.hookspecs",
    "objective": "curvlab.objectives.supervised",
    "optimizer": "curvlab.api",
    "train": "curvlab.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'curvlab' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
