"""Factorizations by dimension and dtype; iterations and products of every registered Krylov solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import torch

from .catalogue import catalogue
from .meters import cost, quiet
from .structures import DTYPES, backend, normal

FACTORIZATIONS = ["cholesky", "inverse", "eigh"]

SOLVERS = catalogue().solvers

#: of the systems that solvers are given; eigenvalues fall from 1 to 1/condition by a constant factor
DIMENSION, CONDITIONS = 500, [100, 10_000]

TOLERANCE = 1e-6


def prepared(name: str, d: int, dtype: str) -> Callable[[], object]:
    """A factorization of a positive definite matrix."""
    X = normal(2 * d, d, seed=3, dtype=DTYPES[dtype])
    S = X.mT @ X / len(X)
    S.diagonal().add_(0.1)
    arithmetic = backend(dtype)
    method: Callable[[Any], object] = getattr(arithmetic, name)
    return lambda: method(S)


class FactorisationCosts:
    """Deterministic costs of one factorization."""

    version = "1"
    param_names: ClassVar = ["factorisation", "dimension"]  # codespell:ignore factorisation
    params: ClassVar = [FACTORIZATIONS, [64, 257]]

    def setup(self, factorization: str, dimension: int) -> None:
        quiet()
        self.call = prepared(factorization, dimension, "float32")

    def track_flops(self, factorization: str, dimension: int) -> float:
        return float(cost(self.call).flops)

    def track_peak_bytes(self, factorization: str, dimension: int) -> float:
        return float(cost(self.call).peak_bytes)

    track_flops.unit = "flops"  # type: ignore[attr-defined]
    track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]


class FactorisationTime:
    """Seconds of one factorization."""

    version = "1"
    warmup_time = 0.02
    sample_time = 0.02
    rounds = 2
    repeat = (3, 10, 0.3)
    param_names: ClassVar = ["factorisation", "dimension", "dtype"]  # codespell:ignore factorisation
    params: ClassVar = [FACTORIZATIONS, [64, 512], list(DTYPES)]

    def setup(self, factorization: str, dimension: int, dtype: str) -> None:
        quiet(timed=True)
        self.call = prepared(factorization, dimension, dtype)

    def time_factorisation(self, factorization: str, dimension: int, dtype: str) -> None:
        self.call()


class Solves:
    """What a solver needs to bring the residual down to ``TOLERANCE``, in float64."""

    version = "1"
    param_names: ClassVar = ["solver", "condition", "preconditioner"]
    params: ClassVar = [SOLVERS, CONDITIONS, ["none", "rough"]]

    def setup(self, solver: str, condition: int, preconditioner: str) -> None:
        quiet()
        self.solver = made(solver)
        self.A, self.b, self.M = system(condition)
        if preconditioner == "none":
            self.M = None

    def track_iterations(self, solver: str, condition: int, preconditioner: str) -> float:
        return float(self.solver.solve(self.A, self.b, M=self.M).iterations)

    def track_products(self, solver: str, condition: int, preconditioner: str) -> float:
        self.solver.solve(self.A, self.b, M=self.M)
        return float(self.A.count)

    def track_peak_bytes(self, solver: str, condition: int, preconditioner: str) -> float:
        return float(cost(lambda: self.solver.solve(self.A, self.b, M=self.M)).peak_bytes)

    track_iterations.unit = "iterations"  # type: ignore[attr-defined]
    track_products.unit = "products"  # type: ignore[attr-defined]
    track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]


def made(solver: str) -> Any:
    """A solver that stops at the tolerance and at nothing else, as far as it has such settings."""
    from curvlab.config import build_part
    from curvlab.protocols.krylov import Krylov
    from curvlab.registry.imports import part_class
    from curvlab.registry.loader import installed

    registry = installed()
    if solver not in {entry.name for entry in registry.parts("krylov")}:
        raise NotImplementedError(f"this commit has no solver {solver}")
    known = {field.name for field in fields(part_class(registry.part("krylov", solver)))}
    asked = {"tolerance": TOLERANCE, "max_iterations": 1000, "progress": 0.0}
    return build_part(registry, Krylov, solver, {k: v for k, v in asked.items() if k in known})


def system(condition: int) -> tuple[Any, Any, Any]:
    """An operator that counts its products, a right-hand side, a preconditioner that is off by up to 4."""
    from curvlab.linalg.operator import LinearOperator
    from curvlab.linalg.vectors import BlockLayout, BlockVector

    layout = BlockLayout({"w": (DIMENSION,)})
    steps = torch.arange(DIMENSION, dtype=torch.float64) / (DIMENSION - 1)
    values = float(condition) ** -steps
    rough = values * (1.0 + 3.0 * torch.rand(DIMENSION, generator=torch.Generator().manual_seed(4)).double())

    class Diagonal(LinearOperator[Any]):
        self_adjoint = psd = True
        count = 0

        def __matmul__(self, v: Any) -> Any:
            self.count += 1
            return BlockVector(layout, values * v.flat)

    b = BlockVector(layout, normal(DIMENSION, seed=5, dtype=torch.float64))
    return Diagonal(), b, lambda r: BlockVector(layout, r.flat / rough)
