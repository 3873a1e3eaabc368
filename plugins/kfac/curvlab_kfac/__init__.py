"""Kronecker-factored curvature: KFAC, EKFAC, FOOF and CG-FAC."""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Parts by import string; nothing here imports torch."""
    registry.add(
        "estimator",
        "layer-covariance",
        "curvlab_kfac.layer_covariance:LayerCovariance",
        summary="Kronecker factors A (inputs) and B (output gradients) of linear layers and convolutions",
    )
    registry.add(
        "estimator",
        "layer-rows",
        "curvlab_kfac.layer_rows:LayerRows",
        summary="The same curvature on one batch, as products with its rows; no factor is formed",
    )
    registry.add(
        "inverse",
        "split-cholesky",
        "curvlab_kfac.split_damping:SplitCholesky",
        summary="Inverse of each factor, the damping split between them by their traces (π)",
    )
    registry.methods("curvlab_kfac")
