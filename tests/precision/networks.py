"""A small network with dropout and batch normalization, and batches of digits."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tests.limits.registered import methods

#: reads a differential equation, not a network of one's own; and methods that refuse passes in 16 bits
PINN = ("kfac-pinn", "lm", "engd", "dngd", "spring")

METHODS = tuple(m for m in methods() if m not in PINN)

#: methods that a plain loop serves, and the knobs that it needs there
IN_PLAIN_LOOPS: dict[str, dict[str, object]] = {
    "sgd": {},
    "adamw": {},
    "muon": {},
    "kfac": {"labels": "data"},
    "ekfac": {"labels": "data"},
    "foof": {},
    "ikfac": {"labels": "data"},
    "ingd": {"labels": "data"},
    "singd": {"labels": "data"},
    "sirf-shampoo": {"lr": 0.01},
    "shampoo": {},
    "soap": {},
    "kl-shampoo": {},
    "kl-soap": {},
}


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 10)
    return nn.Sequential(*layers).to(dtype)


@cache
def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def batch(k: int, dtype: torch.dtype = torch.float32, size: int = 32) -> tuple[Tensor, Tensor]:
    x, y = digits()
    some = torch.arange(k * size, (k + 1) * size) % len(x)
    return x[some].to(dtype), y[some]
