"""Low precision: parameters in halves, passes under autocast, and a precision per phase of training.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """The precisions."""
    registry.add(
        "precision",
        "bfloat16",
        "curvlab_precision.half:Bfloat16",
        summary="parameters and passes in bfloat16; what is factorized in float32",
    )
    registry.add(
        "precision",
        "float16",
        "curvlab_precision.half:Float16",
        summary="parameters and passes in float16, for a loss that is scaled; states in float32",
    )
    registry.add(
        "precision",
        "mixed-bfloat16",
        "curvlab_precision.mixed:Mixed",
        summary="parameters and states in float32, passes under autocast in bfloat16",
    )
    registry.add(
        "precision",
        "mixed-float16",
        "curvlab_precision.mixed:MixedFloat16",
        summary="parameters and states in float32, passes under autocast in float16, with a loss scale",
    )
    registry.add(
        "precision",
        "phases",
        "curvlab_precision.phases:Phases",
        summary="one precision after the other, by the fraction of a run's budget",
    )
