"""The curvlab plugin hello.

Imported on every listing, so it imports no torch: parts are registered by import string.
"""

from __future__ import annotations

from curvlab import hookimpl
from curvlab.registry import Registry

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Registry) -> None:
    """What this plugin brings."""
    registry.add(
        "structure",
        "hello",
        "curvlab_hello.hello:Hello",
        summary="chessboards: even indices meet even ones, odd indices odd ones",
    )
