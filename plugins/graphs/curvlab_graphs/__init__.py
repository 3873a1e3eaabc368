"""Layers of torch_geometric: the linear layer inside its convolutions.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """The reader."""
    registry.add(
        "layer",
        "geometric-linear",
        "curvlab_graphs.linear:GraphLinearReader",
        summary="Linear of torch_geometric, inside GCNConv and other convolutions",
    )
