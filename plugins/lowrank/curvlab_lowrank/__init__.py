"""Low-rank inverses of Kronecker factors: RS-KFAC, B-KFAC, B-R-KFAC and B-R-C-KFAC."""

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
    registry.add(
        "estimator",
        "corrected-covariance",
        "curvlab_lowrank.corrected:CorrectedCovariance",
        summary="KFAC's factors by their largest eigenvalues, overwritten and corrected by dense averages",
    )
    registry.methods("curvlab_lowrank")
