"""Limited-memory BFGS: a preconditioner fed by steps or by Krylov solves, and a strong-Wolfe search."""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Parts by import string; nothing here imports torch."""
    registry.add(
        "preconditioner",
        "lbfgs",
        "curvlab_lbfgs.lbfgs:Lbfgs",
        summary="the inverse curvature estimated from the last steps, or from a Krylov solver's directions",
    )
    registry.add(
        "step",
        "strong-wolfe",
        "curvlab_lbfgs.strong_wolfe:StrongWolfe",
        summary="a line search until the loss and its slope have both decreased enough",
    )
    registry.methods("curvlab_lbfgs")
