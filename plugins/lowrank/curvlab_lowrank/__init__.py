"""Low-rank inverses of Kronecker factors: RS-KFAC and B-KFAC."""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Parts by import string; nothing here imports torch."""
    registry.add(
        "inverse",
        "randomized",
        "curvlab_lowrank.randomized:Randomized",
        summary="Inverse of each dense factor from its largest eigenvalues, found by a randomized range",
    )
    registry.methods("curvlab_lowrank")
