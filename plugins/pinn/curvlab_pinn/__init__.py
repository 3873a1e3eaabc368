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
        "curvlab_pinn.tasks.poisson:Poisson",
        summary="-Δu = f on the unit cube, solved by an MLP; the error against the known solution",
        source="points drawn from a seed",
    )
    registry.add(
        "task",
        "heat",
        "curvlab_pinn.tasks.heat:Heat",
        summary="∂u/∂t = Δu on the unit cube, solved by an MLP; the error against the known solution",
        source="points drawn from a seed",
    )
    registry.add(
        "task",
        "helmholtz",
        "curvlab_pinn.tasks.helmholtz:Helmholtz",
        summary="Δu + k²u = q on a square, with four waves; the error against the known solution",
        source="points drawn from a seed",
    )
    registry.add(
        "task",
        "burgers",
        "curvlab_pinn.tasks.burgers:Burgers",
        summary="Burgers' equation until its shock; the error against the exact solution",
        source="points drawn from a seed; an exact solution",
    )
    registry.add(
        "task",
        "allen-cahn",
        "curvlab_pinn.tasks.allen_cahn:AllenCahn",
        summary="the Allen-Cahn equation, periodic; the error against a spectral solution",
        source="points drawn from a seed; `curvlab tasks prepare allen-cahn`",
    )
    registry.add(
        "task",
        "kdv",
        "curvlab_pinn.tasks.kdv:KdV",
        summary="the Korteweg-de Vries equation, periodic; the error against a spectral solution",
        source="points drawn from a seed; `curvlab tasks prepare kdv`",
    )
    registry.add(
        "task",
        "inverse-poisson",
        "curvlab_pinn.tasks.inverse_poisson:InversePoisson",
        summary="-κΔu = f with κ unknown, from measurements of u",
        source="points and measurements drawn from a seed",
    )
    registry.methods("curvlab_pinn")
