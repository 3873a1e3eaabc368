"""Exact Gauss–Newton and natural-gradient steps in sample space: LM, ENGD, SPRING, D-NGD, FNGD."""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Parts by import string; nothing here imports torch."""
    registry.add(
        "preconditioner",
        "sample-space",
        "curvlab_samplespace.sample_space:SampleSpace",
        summary="the exact damped Gauss-Newton step of a batch, by its kernel or by singular values",
    )
    registry.add(
        "preconditioner",
        "layer-space",
        "curvlab_samplespace.layer_space:LayerSpace",
        summary="the exact natural gradient of every layer on a batch, by the layer's kernel",
    )
    registry.add(
        "preconditioner",
        "frozen-coefficients",
        "curvlab_samplespace.frozen:FrozenCoefficients",
        summary="weighted gradients of examples, with weights from the first steps' natural gradients",
    )
    registry.add(
        "step",
        "target-ratio",
        "curvlab_samplespace.target_ratio:TargetRatio",
        summary="the longest step of a trust region whose reduction ratio reaches a target",
    )
    registry.methods("curvlab_samplespace")
