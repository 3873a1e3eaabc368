"""The first-party methods by name, installed or only on the path, and something small to train with them."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.config import build_method
from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.objectives.supervised import objective
from curvlab.precision.full import Full
from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate
from curvlab.testing.unread import UnreadNorm

#: every first-party method
METHODS = ("sgd", "adamw", "muon", "kfac", "ekfac", "foof", "cg-fac")
#: what makes a method quick on a network this small
KNOBS: dict[str, dict[str, Any]] = {"cg-fac": {"max_iterations": 5}}


@lru_cache(maxsize=1)
def registry() -> Registry:
    """Core, firstorder, structures and kfac, nothing else."""
    names = ("firstorder", "structures", "kfac")
    return discover(
        plugins=[
            Candidate(n, f"curvlab-{n}", "0", lambda n=n: importlib.import_module(f"curvlab_{n}"))
            for n in names
        ],
        strict=True,
    )


def composed(name: str, settings: dict[str, Any] | None = None, **knobs: Any) -> Method:
    """The method of this name."""
    return build_method(registry(), name, knobs, settings)


def optimizer(name: str, model: nn.Module, *, seed: int = 0, **knobs: Any) -> CurvatureOptimizer:
    """The method of this name on ``model``, in float64 if the model is."""
    like = next(model.parameters())
    backend = Full("float64" if like.element_size() == 8 else "float32")
    return CurvatureOptimizer(composed(name, **knobs), model, backend=backend, seed=seed, name=name)


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), UnreadNorm(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def batch(k: int, n: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(100 + k)
    return torch.randn(n, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g)


def train(model: nn.Module, opt: CurvatureOptimizer, steps: range) -> list[float]:
    losses = []
    for k in steps:
        loss = opt.step(objective(model, nn.CrossEntropyLoss(), *batch(k)))
        losses.append(float(loss))
    return losses


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def knobs(name: str) -> dict[str, Any]:
    """Refreshing every third step, so that step 4 is in the middle of a cadence."""
    return {"refresh": 3} if name in ("kfac", "ekfac", "foof") else KNOBS.get(name, {})
