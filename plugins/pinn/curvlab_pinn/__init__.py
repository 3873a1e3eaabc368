"""Networks that solve partial differential equations: KFAC for PINNs, its parts, and tasks to try it on.

This module is imported on every listing, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"

#: task -> class, what it is, and where its data come from
TASKS = {
    "poisson": (
        "poisson:Poisson",
        "-Δu = f on the unit cube, solved by an MLP; the error against the known solution",
        "points drawn from a seed",
    ),
    "heat": (
        "heat:Heat",
        "∂u/∂t = Δu on the unit cube, solved by an MLP; the error against the known solution",
        "points drawn from a seed",
    ),
    "helmholtz": (
        "helmholtz:Helmholtz",
        "Δu + k²u = q on a square, with four waves; the error against the known solution",
        "points drawn from a seed",
    ),
    "burgers": (
        "burgers:Burgers",
        "Burgers' equation until its shock; the error against the exact solution",
        "points drawn from a seed; an exact solution",
    ),
    "allen-cahn": (
        "allen_cahn:AllenCahn",
        "the Allen-Cahn equation, periodic; the error against a spectral solution",
        "points drawn from a seed; `curvlab tasks prepare allen-cahn`",
    ),
    "kdv": (
        "kdv:KdV",
        "the Korteweg-de Vries equation, periodic; the error against a spectral solution",
        "points drawn from a seed; `curvlab tasks prepare kdv`",
    ),
    "inverse-poisson": (
        "inverse_poisson:InversePoisson",
        "-κΔu = f with κ unknown, from measurements of u",
        "points and measurements drawn from a seed",
    ),
}


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
    for name, (factory, summary, source) in TASKS.items():
        registry.add("task", name, f"curvlab_pinn.tasks.{factory}", summary=summary, source=source)
    registry.methods("curvlab_pinn")
