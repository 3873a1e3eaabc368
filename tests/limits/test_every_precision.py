"""Every method trains in every precision: fifty steps of three networks on real data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import curvlab
from curvlab.errors import ConfigError
from tests.grids import thinned
from tests.limits.registered import methods

PRECISIONS = ("float64", "bfloat16", "mixed-bfloat16", "mixed-float16")
STEPS, BATCH = 50, 32

#: methods that solve on one batch after the other need more examples than a test has time for: theirs is one
#: batch, and few iterations
ON_ONE_BATCH: Mapping[str, Mapping[str, Any]] = {
    "lbfgs": {},
    "hf-gn": {},
    "hf-martens": {"max_iterations": 4},
    "hf-stochastic": {"max_iterations": 3},
    "ksd": {"dimension": 4, "iterations": 3},
}

#: differences of derivatives and exact systems need more digits than 16 bits have: refused in one sentence
REFUSED = ("kfac-pinn", "lm", "engd", "dngd", "spring")


class Tokens(nn.Module):
    """A transformer that reads the rows of a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.places = nn.Parameter(torch.randn(8, 8) * 0.1)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.block(self.embed(x) + self.places)).mean(1))
        return y


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def convnet() -> nn.Module:
    first, second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3)
    pooled = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU())
    return nn.Sequential(pooled, nn.Flatten(), nn.Linear(32, 10))


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (8, 8)),
    "convnet": (convnet, (1, 8, 8)),
    "transformer": (Tokens, (8, 8)),
}


#: every precision and every network once, each for every fourth method; all are the grid, ``pytest -m grid``
FEW = [
    ("mlp", "mixed-float16"),
    ("convnet", "bfloat16"),
    ("transformer", "mixed-bfloat16"),
    ("mlp", "float64"),
]
TRAINED = [m for m in methods() if m not in REFUSED]
CASES = thinned(
    TRAINED, NETWORKS, PRECISIONS, few={(m, *FEW[k % len(FEW)]) for k, m in enumerate(sorted(TRAINED))}
)


@cache
def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16), torch.tensor(y)


def losses(method: str, network: str, precision: str) -> list[float]:
    """Of fifty steps, on other examples each where the method is not made for one batch."""
    make, shape = NETWORKS[network]
    x, y = digits()
    torch.manual_seed(0)
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(precision, torch.float32)
    model = make().to(dtype)
    optimizer = curvlab.optimizer(method, model, precision=precision, **ON_ONE_BATCH.get(method, {}))
    found = []
    for k in range(STEPS):
        start = 0 if method in ON_ONE_BATCH else k * BATCH
        some = torch.arange(start, start + BATCH) % len(x)
        objective = curvlab.objective(
            model, nn.CrossEntropyLoss(), x[some].view(-1, *shape).to(dtype), y[some]
        )
        found.append(float(optimizer.step(objective)))
    assert all(bool(torch.isfinite(t).all()) for t in model.state_dict().values())
    return found


@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
@pytest.mark.parametrize(("method", "network", "precision"), CASES)
def test_it_trains(method: str, network: str, precision: str) -> None:
    found = losses(method, network, precision)
    overflowed = [k for k, loss in enumerate(found) if not math.isfinite(loss)]
    assert precision == "mixed-float16" or not overflowed  # there the first steps find the scale
    finite = [loss for loss in found if math.isfinite(loss)]
    assert len(finite) > STEPS - 15
    assert sum(finite[-10:]) < 0.998 * sum(finite[:10])


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "float64"])
@pytest.mark.parametrize("method", REFUSED)
def test_it_is_refused_in_one_sentence_before_the_first_step(method: str, precision: str) -> None:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    with pytest.raises(ConfigError, match="does not work with passes in b?float16: "):
        curvlab.optimizer(method, mlp().to(dtype), precision=precision)
