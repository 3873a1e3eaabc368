"""Methods that know a block by the second moments of its gradient along each axis: Shampoo and SOAP.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """The two preconditioners and their methods."""
    registry.add(
        "preconditioner",
        "shampoo",
        "curvlab_shampoo.shampoo:Shampoo",
        summary="a root of the gradient's second moments along each axis",
    )
    registry.add(
        "preconditioner",
        "soap",
        "curvlab_shampoo.soap:Soap",
        summary="Adam's second moment, in the eigenbasis of the gradient's moments along each axis",
    )
    registry.methods("curvlab_shampoo")
