"""Inverse-free Kronecker preconditioners: SINGD, INGD, IKFAC and SIRF-Shampoo."""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Parts by import string; nothing here imports torch."""
    registry.add(
        "preconditioner",
        "singd",
        "curvlab_singd.singd:Singd",
        summary="Kronecker factors of the inverse, moved in a structured matrix group by products alone",
    )
    registry.add(
        "preconditioner",
        "sirf-shampoo",
        "curvlab_singd.sirf_shampoo:SirfShampoo",
        summary="Shampoo without roots or inverses: one such factor per axis of each block's gradient",
    )
    registry.methods("curvlab_singd")
