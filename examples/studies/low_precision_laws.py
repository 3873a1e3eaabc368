"""Five laws of low precision in numbers: the experiments of the precision plugin's tests, kept as runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from training import ROOT, Ledger

sys.path.append(str(ROOT))  # the experiments are among the tests

from curvlab.parts.inverses import Cholesky
from curvlab.precision.full import Full
from curvlab.protocols.backend import Backend
from curvlab.protocols.preconditioner import Inverse
from curvlab_precision.half import Bfloat16, Float16
from plugins.precision.tests import experiments

#: how a factor is stored, for tables
STORED: Mapping[str, Backend] = {
    "float32, of rows in float32": Full(),
    "float32, of rows in bfloat16": Bfloat16(),
    "bfloat16, rounded to nearest": Bfloat16(factors="bfloat16", averages="nearest"),
    "bfloat16, rounded stochastically": Bfloat16(factors="bfloat16", averages="stochastic"),
}
CONDITIONS = (1e4, 1e6)
DECAYS = (0.95, 0.99, 0.999)
DAMPINGS = (1e-3, 1e-4)
#: who goes where on the ill-conditioned layer: an inverse of KFAC's, or none of IKFAC's, and a precision
WAYS: Mapping[str, tuple[Inverse | None, Backend]] = {
    "KFAC in float32": (Cholesky(), Full()),
    "KFAC, float32 factors of rows in bfloat16": (Cholesky(), Bfloat16()),
    "KFAC, bfloat16 factors (nearest), inverse by LU": (
        experiments.Unchecked(),
        STORED["bfloat16, rounded to nearest"],
    ),
    "KFAC, bfloat16 factors (stochastic), inverse by LU": (
        experiments.Unchecked(),
        STORED["bfloat16, rounded stochastically"],
    ),
    "KFAC, bfloat16 factors (nearest), our inverse": (Cholesky(), STORED["bfloat16, rounded to nearest"]),
    "IKFAC in float32": (None, Full()),
    "IKFAC in bfloat16 throughout": (None, Bfloat16()),
}


def laws(ledger: Ledger) -> None:
    """Every number that is missing."""
    for key, experiment in _experiments().items():
        law, *settings = key
        found = ledger.get({"law": law, "settings": settings}, experiment)
        print(law, *settings, found, flush=True)


def _experiments() -> Mapping[tuple[str | float, ...], Callable[[], dict[str, Any]]]:
    found: dict[tuple[str | float, ...], Callable[[], dict[str, Any]]] = {}
    for stored, backend in STORED.items():
        for condition in CONDITIONS:
            found["factor", stored, condition] = partial(_factor, backend, condition)
    for decay in DECAYS:
        for rounding in ("nearest", "stochastic"):
            found["average", rounding, decay] = partial(_average, decay, rounding)
    found["products",] = _products
    for way, (inverse, backend) in WAYS.items():
        for damping in DAMPINGS:
            found["direction", way, damping] = partial(_direction, inverse, backend, damping)
    found["range",] = _range
    return found


def _factor(backend: Backend, condition: float) -> dict[str, Any]:
    return asdict(experiments.definiteness(backend, condition))


def _average(decay: float, rounding: Any) -> dict[str, Any]:
    return {"end": experiments.moved(decay, rounding)}


def _products() -> dict[str, Any]:
    """Negative entries of ``diag(QᵀAQ)`` by products in bfloat16, and of EKFAC's moments."""
    moments = experiments.moments(STORED["bfloat16, rounded to nearest"])
    return {
        "products": experiments.negative_diagonals(torch.bfloat16),
        "of": experiments.IN,
        "moments": int((moments <= 0).sum()),
    }


def _direction(inverse: Inverse | None, backend: Backend, damping: float) -> dict[str, Any]:
    return asdict(experiments.directions(inverse, backend, damping))


def _range() -> dict[str, Any]:
    """KFAC's A of rows in float16 of two sizes, over the truth."""
    return {str(size): experiments.squared_rows(Float16(), size) for size in (1e-4, 0.01 * 2**14)}
