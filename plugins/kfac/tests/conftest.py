"""Estimates on the exact cases of ``curvlab.testing``, as dense matrices."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from curvlab.config import build_method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.operator import dense_block
from curvlab.precision.full import Full
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation
from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate
from curvlab.structures.dense import Dense
from curvlab.testing.problems import Problem
from curvlab.testing.reference import reference_context
from curvlab_kfac.layer_covariance import LayerCovariance

Estimated = tuple[dict[str, Tensor], nn.Module, Blocks]
Estimate = Callable[..., Estimated]
Optimizers = Callable[..., CurvatureOptimizer]


def observed(
    estimator: CurvatureEstimator[Any], problem: Problem, seed: int = 0
) -> tuple[Any, Evaluation, Blocks, nn.Module]:
    """The estimator's state after one look at the problem's batch."""
    model, ctx = problem.model(), reference_context(seed=seed)
    blocks = problem.blocks(model)
    seen = problem.objective(model).evaluate(estimator.needs(), blocks, ctx)
    state = estimator.init(blocks.layout.zeros(like=blocks.like.detach()), ctx)
    estimator.observe(state, seen, ctx)
    return state, seen, blocks, model


def dense_blocks(estimator: CurvatureEstimator[Any], problem: Problem, seed: int = 0) -> Estimated:
    """C's blocks as matrices after one look, and the model they are of."""
    state, seen, blocks, model = observed(estimator, problem, seed)
    C = estimator.curvature(state)
    assert isinstance(C, BlockDiagonal)
    like = seen.gradient.zeros_like()
    return {name: dense_block(block, like[name]) for name, block in C.blocks.items()}, model, blocks


@pytest.fixture
def kfac() -> Estimate:
    """``kfac(problem, seed=…, **settings)``: KFAC's blocks with dense factors."""

    def estimate(problem: Problem, *, seed: int = 0, **settings: Any) -> Estimated:
        return dense_blocks(LayerCovariance(Dense(), Dense(), **settings), problem, seed)

    return estimate


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Core, this plugin, and those that its methods' fallback and structures come from."""
    found = []
    for name in ("firstorder", "structures", "kfac"):
        load = lambda name=name: importlib.import_module(f"curvlab_{name}")  # noqa: E731
        found.append(Candidate(name, f"curvlab-{name}", "0", load))
    return discover(plugins=found, strict=True)


@pytest.fixture
def optimizer(registry: Registry) -> Optimizers:
    """``optimizer(method, model, settings=…, **knobs)`` in float64."""

    def make(
        name: str, model: nn.Module, *, settings: dict[str, Any] | None = None, seed: int = 0, **knobs: Any
    ) -> CurvatureOptimizer:
        method = build_method(registry, name, knobs, settings)
        return CurvatureOptimizer(method, model, backend=Full("float64"), seed=seed, name=name)

    return make
