"""Methods that use second moments of a block's gradient along each axis: Shampoo, SOAP and their KL forms.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """The preconditioners and their methods."""
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
    registry.add(
        "preconditioner",
        "kl-shampoo",
        "curvlab_shampoo.kl_shampoo:KlShampoo",
        summary="the inverse root of the gradient's covariance along each axis, KL-optimal",
    )
    registry.methods("curvlab_shampoo")
