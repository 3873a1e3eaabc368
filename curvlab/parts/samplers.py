"""Samplers: which examples a step works on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Count, Share, check_bounds
from curvlab.protocols.evidence import StepOutcome
from curvlab.protocols.needs import Needs
from curvlab.protocols.sampler import Draw, Sampler


@dataclass
class UniformState:
    """How many examples were drawn so far; with size and seed, that says everything.

    The permutation of the epoch under way is a cache.
    """

    size: int
    batch_size: int
    seed: int
    drawn: int
    cache: tuple[int, Int[Tensor, " size"]] | None = field(default=None, metadata={"transient": True})


@dataclass(frozen=True)
class Uniform(Sampler[UniformState]):
    """Every example once per epoch, in an order shuffled by (seed, epoch).

    Batches are always full: one that reaches the end of an epoch takes the rest of it and begins the
    next.  ``batch_size`` defaults to the task's.
    """

    batch_size: Count | None = None

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, size: int, batch_size: int, seed: int) -> UniformState:
        return UniformState(size, min(self.batch_size or batch_size, size), seed, 0)

    def draw(self, state: UniformState) -> Draw:
        epoch, start = divmod(state.drawn, state.size)
        stop = start + state.batch_size
        chosen = _permutation(state, epoch)[start:stop]
        if stop > state.size:
            chosen = torch.cat([chosen, _permutation(state, epoch + 1)[: stop - state.size]])
        state.drawn += state.batch_size
        return Draw(chosen, chosen, chosen)


def _permutation(state: UniformState, epoch: int) -> Int[Tensor, " size"]:
    if state.cache is None or state.cache[0] != epoch:
        # a seed of its own per (run, epoch), of the size that torch takes; it spreads consecutive seeds well
        generator = torch.Generator(device="cpu").manual_seed((state.seed * 1_000_003 + epoch) % 2**63)
        state.cache = (epoch, torch.randperm(state.size, generator=generator, device="cpu"))
    return state.cache[1]


@dataclass(frozen=True)
class Sequential(Sampler[UniformState]):
    """The examples in their own order, and the same batches in every epoch.

    The last batch of an epoch holds what is left.  ``batch_size`` defaults to the task's.
    """

    batch_size: Count | None = None

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, size: int, batch_size: int, seed: int) -> UniformState:
        return UniformState(size, min(self.batch_size or batch_size, size), seed, 0)

    def draw(self, state: UniformState) -> Draw:
        start = state.drawn % state.size
        stop = min(start + state.batch_size, state.size)
        state.drawn += stop - start
        chosen = torch.arange(start, stop, device="cpu")
        return Draw(chosen, chosen, chosen)


@dataclass
class FullBatchState:
    """All the indices there are."""

    size: int


@dataclass(frozen=True)
class FullBatch(Sampler[FullBatchState]):
    """All examples, every step."""

    def init(self, size: int, batch_size: int, seed: int) -> FullBatchState:
        return FullBatchState(size)

    def draw(self, state: FullBatchState) -> Draw:
        everything = torch.arange(state.size, device="cpu")
        return Draw(everything, everything, everything)


@dataclass(frozen=True)
class SubsampledCurvature(Sampler[Any]):
    """Another sampler's draw, with only a fraction of it for curvature products.

    The first ``fraction`` of the gradient sample, at least ``minimum`` examples.
    """

    base: Sampler[Any]
    fraction: Share = 0.25
    minimum: Count = 1

    def __post_init__(self) -> None:
        check_bounds(self)
        if isinstance(self.base, SubsampledCurvature):
            raise ConfigError(
                Fault("base must not be subsampled-curvature again", path="base", hint='use base = "uniform"')
            )

    def init(self, size: int, batch_size: int, seed: int) -> Any:
        return self.base.init(size, batch_size, seed)

    def draw(self, state: Any) -> Draw:
        draw = self.base.draw(state)
        kept = max(self.minimum, round(self.fraction * len(draw.curvature)))
        return replace(draw, curvature=draw.curvature[:kept])

    def needs(self, state: Any) -> Needs:
        return self.base.needs(state)

    def learn(self, state: Any, what: StepOutcome) -> None:
        self.base.learn(state, what)
