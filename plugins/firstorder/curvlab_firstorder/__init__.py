"""First-order methods for curvlab: ``sgd``, ``adamw`` and ``muon``, and the parts they need.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Adam's and Muon's preconditioners, and the three methods."""
    registry.add(
        "preconditioner",
        "adam",
        "curvlab_firstorder.adam:Adam",
        summary="divides by the root of a moving average of squared gradients",
    )
    registry.add(
        "preconditioner",
        "newton-schulz",
        "curvlab_firstorder.newton_schulz:NewtonSchulz",
        summary="the nearest matrix with orthogonal rows or columns, for matrices",
    )
    registry.methods("curvlab_firstorder")
