"""Smaller networks, around any method: SVD training, and unification and pruning of blocks of weights.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """The task of factorized layers, the callback that trains and prunes them, and that of blocks."""
    registry.add(
        "task",
        "svd",
        "curvlab_compress.svd_task:SvdTask",
        summary="another task, its linear layers and convolutions as U diag(s) Vᵀ",
        source="that of the other task",
    )
    registry.add(
        "callback",
        "svd-training",
        "curvlab_compress.svd_training:SvdTraining",
        summary="keeps U and V orthogonal, makes s sparse, and prunes it by energy",
    )
    registry.add(
        "callback",
        "block-admm",
        "curvlab_compress.block_admm:BlockAdmm",
        summary="blocks of weights of one magnitude, or zero, by ADMM",
    )
