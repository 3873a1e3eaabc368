"""Quasi-Newton inverses of Kronecker factors: K-BFGS and its limited-memory form."""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Parts by import string; nothing here imports torch."""
    registry.add(
        "preconditioner",
        "kbfgs",
        "curvlab_kbfgs.kbfgs:Kbfgs",
        summary="inverses of KFAC's two factors by BFGS, from a second evaluation of each batch",
    )
    registry.methods("curvlab_kbfgs")
