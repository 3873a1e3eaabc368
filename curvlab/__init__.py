"""curvlab: second-order optimisers for PyTorch, composed from parts.

The public face.  Importing it costs next to nothing: torch is imported when a name is first used.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

#: the one place where the version is written
__version__ = "0.1.0"

if TYPE_CHECKING:
    from curvlab.engine.coverage import CoverageWarning
    from curvlab.engine.optimizer import CurvatureOptimizer
    from curvlab.face import optimizer, train
    from curvlab.objective.mismatch import LayerMismatch
    from curvlab.objective.supervised import objective
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
    "LayerMismatch": "curvlab.objective.mismatch",
    "hookimpl": "curvlab.registry.hookspecs",
    "objective": "curvlab.objective.supervised",
    "optimizer": "curvlab.face",
    "train": "curvlab.face",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'curvlab' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


class _Callable(ModuleType):
    """The room ``curvlab.objective`` once it is imported: calling it calls the function in it."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        return __getattr__("objective")(*given, **named)


class _Face(ModuleType):
    """Importing the room ``objective`` binds its name here, over the public function of that name.

    Both are meant by users, ``import curvlab.objective.losses`` and ``curvlab.objective(model, …)``,
    so the room is made callable when it is bound.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "objective" and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
