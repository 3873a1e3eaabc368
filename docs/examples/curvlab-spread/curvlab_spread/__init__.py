"""The curvlab plugin spread.

Imported on every listing, so it imports no torch: parts are registered by import string.
"""

from __future__ import annotations

from curvlab import hookimpl
from curvlab.registry import Registry

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Registry) -> None:
    """What this plugin brings: a reader, and a task to try it on."""
    registry.add(
        "layer",
        "spread",
        "curvlab_spread.spread:Spread",
        summary="layers that spread a position over several",
    )
    registry.add(
        "task",
        "spread",
        "curvlab_spread._example:Example",
        summary="digits, by a layer that spread reads",
        source="inside scikit-learn",
    )
