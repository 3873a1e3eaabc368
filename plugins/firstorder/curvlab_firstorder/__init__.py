"""First-order and diagonal methods for curvlab: ``sgd``, ``adamw``, ``muon`` and ``sophia``, and their parts.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Adam's and Muon's preconditioners, Sophia's estimator, and the four methods."""
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
    registry.add(
        "estimator",
        "sampled-diagonal",
        "curvlab_firstorder.sampled_diagonal:SampledDiagonal",
        summary="the diagonal of the Fisher matrix, from labels sampled from the model",
    )
    registry.methods("curvlab_firstorder")
