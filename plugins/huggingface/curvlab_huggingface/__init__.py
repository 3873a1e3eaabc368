"""Layers of Hugging Face's transformers: the ``Conv1D`` of GPT-2, and norms without a mean.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """The readers."""
    registry.add(
        "layer",
        "transformers-conv1d",
        "curvlab_huggingface.conv1d:Conv1DReader",
        summary="Conv1D of transformers: a linear layer whose weight is transposed",
    )
