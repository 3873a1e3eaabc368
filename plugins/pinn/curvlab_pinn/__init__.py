"""Networks that solve partial differential equations: KFAC for PINNs, its parts, and tasks to try it on.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Parts, tasks and methods."""
    registry.add(
        "estimator",
        "term-covariance",
        "curvlab_pinn.term_covariance:TermCovariance",
        summary="Kronecker factors of every layer for each term of the loss",
    )
    registry.add(
        "inverse",
        "pair-eigen",
        "curvlab_pinn.pair_eigen:PairEigen",
        summary="exact inverse of a sum of two Kronecker products, each factor damped",
    )
    registry.add(
        "task",
        "poisson",
        "curvlab_pinn.tasks:Poisson",
        summary="-Δu = f on the unit cube, solved by an MLP; the error against the known solution",
        source="points drawn from a seed",
    )
    registry.add(
        "task",
        "heat",
        "curvlab_pinn.tasks:Heat",
        summary="∂u/∂t = Δu on the unit cube, solved by an MLP; the error against the known solution",
        source="points drawn from a seed",
    )
    registry.methods("curvlab_pinn")
