"""AdaS: a rate for each layer and epoch from the ranks of its weights, around any method.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """The callback."""
    registry.add(
        "callback",
        "adas",
        "curvlab_adas.adas:Adas",
        summary="a rate for each layer and epoch from the growth of its rank",
    )
