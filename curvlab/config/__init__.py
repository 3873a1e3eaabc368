"""Configuration: TOML files, overrides and Python dicts, merged into one tree and built into a ``Plan``.

Merging (``load``) knows text and tables only; building (``build``, ``build_method``) imports the
parts, and torch with them, so these names are resolved when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curvlab.config.layers import Layers, load

if TYPE_CHECKING:
    from curvlab.config.plan import Resolved, build, build_method, build_part, resolve

__all__ = ["Layers", "Resolved", "build", "build_method", "build_part", "load", "resolve"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'curvlab.config' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("curvlab.config.plan"), name)
