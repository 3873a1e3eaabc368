"""SINGD with nothing around it, every setting spelt out, so that no default can move these tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.parts.damping import Constant
from curvlab.parts.steps import Rate
from curvlab.parts.transforms import Momentum, WeightDecay
from curvlab.precision.full import Full
from curvlab.protocols.needs import Labels
from curvlab.protocols.step import Transform
from curvlab.protocols.structure import Family
from curvlab.structures.dense import Dense
from curvlab_precision.half import Bfloat16
from curvlab_singd.singd import Singd
from curvlab_singd.update import Factors

#: the rule of specs 5 and nothing else: no bound, no fit at the start, first order
PLAIN: dict[str, Any] = {
    "lr": 0.05,
    "momentum": 0.5,
    "every": 1,
    "coupling": "mean",
    "labels": Labels.DATA,
    "samples": 1,
    "sharing": "auto",
    "limit": math.inf,
    "fit": 0,
    "order": 1,
    "relative": False,
    "stacked": True,
    "tied": False,
}

#: the rules of specs 3 and 4, and ours, by name
INGD: dict[str, Any] = {"coupling": "mean", "momentum": 0.5}
PEAK: dict[str, Any] = {"coupling": "peak", "momentum": 0.5}
IKFAC: dict[str, Any] = {"coupling": "none", "momentum": 0.0}
RULES = {"INGD": INGD, "peak": PEAK, "IKFAC": IKFAC}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
#: one that couples the sides, by all that couples them, and the one that does not
two_rules = pytest.mark.parametrize("rule", [PEAK, IKFAC], ids=["peak", "IKFAC"])


def named(value: object) -> str:
    """A rule by its name, anything else as it prints: ids of parameters."""
    return next((name for name, rule in RULES.items() if rule is value), str(value))


def singd(K: Family | None = None, C: Family | None = None, **settings: Any) -> Singd:
    """The part: ``PLAIN`` but for ``settings``; dense factors unless others are given."""
    K = Dense() if K is None else K
    return Singd(K, K if C is None else C, **{**PLAIN, **settings})


def optimizer(
    model: nn.Module,
    part: Singd,
    *,
    lr: float = 0.05,
    damping: float = 1e-2,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    reduction: str = "mean",
    fallback: Method | None = None,
) -> CurvatureOptimizer:
    """``part`` at work on ``model``, in the dtype of its parameters."""
    around: Sequence[Transform[Any]] = (WeightDecay(weight_decay), Momentum(momentum))
    method = Method(part, Constant(damping), Rate(lr), on_update=tuple(around), fallback=fallback)
    dtype = next(model.parameters()).dtype
    backend = (
        Bfloat16() if dtype == torch.bfloat16 else Full("float64" if dtype == torch.float64 else "float32")
    )
    return CurvatureOptimizer(method, model, backend=backend, reduction=reduction, name="singd")


def factors(ours: CurvatureOptimizer) -> dict[str, Factors]:
    """The live factors, by block; layers that were not called in a step are in arms of their own."""
    found: dict[str, Factors] = {}
    for arm in ours.arms:
        if arm.treatment == "singd":
            found.update(arm.state.preconditioner.blocks)
    return found


def matrices(ours: CurvatureOptimizer) -> dict[str, Tensor]:
    """K and C of every block as dense matrices, copied."""
    return {
        f"{side} of {name}": getattr(f, side).dense().clone()
        for name, f in factors(ours).items()
        for side in ("K", "C")
    }


def theta(model: nn.Module) -> Tensor:
    """All parameters, flat."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])
