"""Every check of the suite of estimators finds one that breaks its law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from tests.testing.caught import (
    CALLS,
    Broken,
    breaking,
    broken,
    frame,
)
from tests.testing.squares import Counting, Late, Squares


@dataclass
class Diagonal(LinearOperator[BlockVector]):
    """``Diag(entries)`` on all blocks together."""

    entries: BlockVector

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(v.layout, v.flat * self.entries.flat)


# estimators


@dataclass(frozen=True)
class SoundEstimator(CurvatureEstimator[Squares]):
    """The diagonal of the empirical Fisher matrix of layers, as a moving average."""

    operator = Diagonal

    def needs(self) -> Needs:
        return Needs(layers=frozenset({Labels.DATA}))

    @property
    def by_layer(self) -> bool:
        return True

    def refuses(self, block: Any) -> str | None:
        return None if block.is_layer else "not a layer"

    def init(self, like: BlockVector, ctx: Context) -> Any:
        return Squares(ctx.zeros(like, "factors"))

    def fresh(self, seen: Evaluation, name: str) -> Tensor:
        (given,) = seen.layers[Labels.DATA][name]
        t = given.to(seen.gradient.dtype)
        assert t.grads is not None
        return (t.grads[0, :, 0].square().mT @ t.inputs[:, 0].square()) / seen.examples

    def observe(self, state: Any, seen: Evaluation, ctx: Context) -> None:
        state.observed += 1
        for name in state.mean:
            mean = state.mean[name]
            mean.lerp_(self.fresh(seen, name).to(mean.dtype), 0.5 / (1 - 0.5**state.observed))

    def curvature(self, state: Any) -> Any:
        return self.operator(state.mean)


@dataclass
class Silent(Diagonal):
    psd = False


@dataclass
class Shearing(Diagonal):
    """Not symmetric."""

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(
            v.layout, v.flat * self.entries.flat + 0.1 * v.flat.roll(1) * self.entries.flat.abs()
        )


@dataclass
class Rectified(Diagonal):
    """Not linear, and not seen to be so by inner products that are positive."""

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(v.layout, v.flat * self.entries.flat).scale_(1.0 + 1e-3 * (v.flat[0] > 0))


@dataclass
class Consuming(Diagonal):
    def __matmul__(self, v: BlockVector) -> BlockVector:
        found = BlockVector(v.layout, v.flat * self.entries.flat)
        v.flat.mul_(0.5).mul_(2.0).nan_to_num_()
        v.flat[0].add_(1e-9)
        return found


def without_examples(self: Any, seen: Evaluation, name: str) -> Tensor:
    return SoundEstimator.fresh(self, seen, name) * seen.examples / 6


def a_thousandfold(self: Any, seen: Evaluation, name: str) -> Tensor:
    return SoundEstimator.fresh(self, seen, name) * 1000


def scaling_the_evidence(self: Any, seen: Evaluation, name: str) -> Tensor:
    (t,) = seen.layers[Labels.DATA][name]
    found = SoundEstimator.fresh(self, seen, name)
    t.inputs.mul_(1.5)
    return found


def in_double(self: Any, state: Any) -> Any:
    C = SoundEstimator.curvature(self, state)
    return Diagonal(C.entries.to(torch.float64))


def unconverted(self: Any, state: Any, seen: Evaluation, ctx: Context) -> None:
    """Writes as if factors had the dtype of vectors."""
    state.observed += 1
    for name in state.mean:
        state.mean[name].lerp_(self.fresh(seen, name), 0.5 / (1 - 0.5**state.observed))


def late(self: Any, like: BlockVector, ctx: Context) -> Any:
    return Late()


def observe_late(self: Any, state: Any, seen: Evaluation, ctx: Context) -> None:
    if state.mean is None:
        state.mean = seen.gradient.zeros_like()
    SoundEstimator.observe(self, state, seen, ctx)


def drawing(self: Any, state: Any) -> Any:
    torch.rand(())
    return SoundEstimator.curvature(self, state)


def restless(self: Any, seen: Evaluation, name: str) -> Tensor:
    return SoundEstimator.fresh(self, seen, name) * (1 + 1e-15 * (next(CALLS) % 7))


def switching(self: Any, state: Any) -> Any:
    torch.use_deterministic_algorithms(True)
    return SoundEstimator.curvature(self, state)


def asking_for_products(self: Any) -> Needs:
    return Needs(layers=frozenset({Labels.DATA}), implicit=True)


def by_first_part(self: Any, seen: Evaluation, name: str) -> Tensor:
    """As if the first micro-batch of the curvature sample were all of it."""
    batches: Any = seen.ggn.batches  # type: ignore[union-attr]
    return SoundEstimator.fresh(self, seen, name) * next(iter(batches)).examples / batches.examples


E = SoundEstimator
ESTIMATORS = [
    breaking("roles", E, observe=unconverted),
    Broken("settings", broken(E, __eq__=lambda self, other: self is other, __hash__=object.__hash__)()),
    breaking("random_state", E, curvature=drawing),
    breaking(
        "determinism",
        E,
        fresh=restless,
        also=("resume",),
        why="what does not repeat itself does not go on alike",
    ),
    breaking("autograd", E, curvature=switching),
    breaking(
        "eager",
        E,
        init=late,
        observe=observe_late,
        also=("resume",),
        why="a fresh state cannot take what it has no tensor for",
    ),
    breaking("resume", E, init=lambda self, like, ctx: Counting(ctx.zeros(like, "factors"))),
    breaking("obligations", E, operator=Silent),
    breaking("refusals", E, refuses=lambda self, block: None if block.is_layer else "  "),
    breaking("self_adjoint", E, operator=Shearing),
    breaking(
        "linear",
        E,
        operator=Rectified,
        also=("self_adjoint",),
        why="of a map that is not linear neither side is",
    ),
    breaking("scale", E, fresh=without_examples),
    breaking("micro_batches", E, needs=asking_for_products, fresh=by_first_part),
    breaking("magnitude", E, fresh=a_thousandfold),
    breaking("evidence", E, fresh=scaling_the_evidence),
    breaking("float32", E, curvature=in_double),
]

EVERY = {
    "estimator": ESTIMATORS,
}

SOUND = [
    ("estimator", SoundEstimator()),
]

caught, shown, passes = frame(EVERY, SOUND)
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes
