"""Samples that grow: how they are drawn.  How large they are to be is what subclasses say.

A step works on a gradient sample, a curvature sample, which is a part of it, and an acceptance sample.
Every order is a function of the seed and of small counters, so a state is a handful of integers.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Count, check_bounds
from curvlab.protocols.sampler import Draw, Sampler
from curvlab_hessianfree.portion import Portion, check_portion, count

Acceptance = Literal["gradient", "curvature", "held-out", "disjoint"]

#: of an acceptance sample of its own, where no size is given
TENTH = 0.1

#: what an order is for; each purpose has generators of its own
DATA, EPOCH, CURVATURE, ACCEPTANCE = range(4)


@dataclass
class GrowingState:
    """Sizes, how often it was drawn and learned from, and where the epoch stands.

    ``acceptance`` is the size of an acceptance sample of its own, else 0.  Orders are a cache.
    """

    size: int
    seed: int
    acceptance: int
    gradient: int = 0
    curvature: int = 0
    draws: int = 0
    lessons: int = 0
    epoch: int = 0
    position: int = 0
    cache: dict[int, tuple[tuple[int, int, int], Int[Tensor, " n"]]] = field(
        default_factory=dict, metadata={"transient": True}
    )


@dataclass(frozen=True, kw_only=True)
class Growing(Sampler[GrowingState]):
    """Gradient, curvature and acceptance samples of sizes that never shrink.

    ``gradient``: the first size, as a fraction (a float) of the examples that are not held out or as a
    count (an int); the task's batch size if not given.  ``gradient_cap`` and ``curvature_cap`` bound both
    sizes in the same way.  ``interval``: steps from one change of the sizes to the next.

    ``nested``: the gradient sample is the first so many examples in an order that is fixed for the run,
    so that each contains the one before.  Otherwise it is the next so many of an order shuffled anew in
    each epoch; an epoch whose rest is too small for one more sample ends there.  Either way it is drawn
    without replacement and has no example twice.

    The curvature sample is a part of the gradient sample.  With ``redraw_curvature`` each step draws another
    one (fixed during the step, as a linear solver needs it).  Without it the sample is the first examples,
    which makes it nested if the gradient sample is.

    ``acceptance`` names the sample of trial losses: the ``gradient`` sample, the ``curvature`` sample, or one
    of its own, of ``acceptance_size`` (fraction or count; a tenth).  ``held-out`` examples are the same
    throughout the run and in no other sample ever.  With ``disjoint`` the three samples of a step have no
    example in common (Krylov subspace descent, Vinyals and Povey 2012, arXiv 1111.4259), and the
    acceptance sample is another one in each step.  Disjoint samples stop growing when the data are used
    up, the gradient sample being served first.

    ``micro_batch`` bounds how many examples are in memory at once, for any size.

    Cost: a draw is a few index operations on the examples' numbers, O(size of the data) integers.
    """

    gradient: Portion | None = None
    gradient_cap: Portion = 1.0
    curvature_cap: Portion = 1.0
    interval: Count = 1
    nested: bool = True
    redraw_curvature: bool = True
    acceptance: Acceptance = "gradient"
    acceptance_size: Portion | None = None
    micro_batch: Count | None = None

    #: the fewest examples that the rule can work with
    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("gradient", "gradient_cap", "curvature_cap", "acceptance_size"):
            check_portion(name, getattr(self, name))
        check_bounds(self)
        if self.acceptance_size is not None and not self._own:
            what = f'acceptance_size = {self.acceptance_size!r}, but acceptance = "{self.acceptance}"'
            hint = 'remove acceptance_size, or set acceptance to "held-out" or "disjoint"'
            raise ConfigError(Fault(what, path="acceptance_size", hint=hint))

    # what a rule says

    @abstractmethod
    def curvature_for(self, gradient: int, pool: int) -> int:
        """How large the curvature sample begins, of ``pool`` examples that may be drawn."""

    def grow(self, state: GrowingState) -> None:
        """Called before each draw but the first; may ``resize``."""
        return None

    # what all share

    def init(self, size: int, batch_size: int, seed: int) -> GrowingState:
        asked = TENTH if self.acceptance_size is None else self.acceptance_size
        state = GrowingState(size, seed, count(asked, size) if self._own else 0)
        pool = self.pool(state)
        first = min(batch_size, size) if self.gradient is None else self.gradient
        gradient = min(max(count(first, pool), self.least), count(self.gradient_cap, pool))
        curvature = min(self.curvature_for(gradient, pool), count(self.curvature_cap, pool))
        if not self._disjoint:
            curvature = min(curvature, gradient)
        self._enough(state, gradient, curvature)
        state.gradient, state.curvature = gradient, curvature
        return state

    def draw(self, state: GrowingState) -> Draw:
        if state.draws:
            self.grow(state)
        order = self._order(state, DATA, 0, state.size)
        held_out, pool = order.tensor_split([state.size - self.pool(state)])
        gradient, source = self._gradient(state, pool)
        if self.redraw_curvature:
            source = self._shuffled(state, CURVATURE, source)
        curvature, left = source.tensor_split([state.curvature])
        if not self._disjoint and state.curvature == state.gradient:
            curvature = gradient  # one tensor: what is known of one sample is known of the other
        if self.acceptance == "disjoint":
            acceptance = self._shuffled(state, ACCEPTANCE, left)[: state.acceptance]
        else:
            acceptance = {"gradient": gradient, "curvature": curvature, "held-out": held_out}[self.acceptance]
        state.draws += 1
        return Draw(gradient, curvature, acceptance, self.micro_batch)

    def pool(self, state: GrowingState) -> int:
        """How many examples may be in a gradient sample."""
        return state.size - (state.acceptance if self.acceptance == "held-out" else 0)

    def most(self, state: GrowingState) -> int:
        """The largest gradient sample there can be."""
        pool = self.pool(state)
        room = pool - state.curvature - state.acceptance if self._disjoint else pool
        return max(state.gradient, min(count(self.gradient_cap, pool), room))

    def resize(self, state: GrowingState, gradient: int, curvature: int) -> None:
        """Take these sizes as far as the caps and the data allow; neither shrinks."""
        state.gradient = max(state.gradient, min(gradient, self.most(state)))
        pool = self.pool(state)
        room = pool - state.acceptance - state.gradient if self._disjoint else state.gradient
        state.curvature = max(state.curvature, min(curvature, count(self.curvature_cap, pool), room))

    @property
    def _disjoint(self) -> bool:
        return self.acceptance == "disjoint"

    @property
    def _own(self) -> bool:
        return self._disjoint or self.acceptance == "held-out"

    def _enough(self, state: GrowingState, gradient: int, curvature: int) -> None:
        pool = self.pool(state)
        if self._disjoint and gradient + curvature + state.acceptance > pool:
            sizes = f"{gradient}, {curvature} and {state.acceptance}"
            what = f"disjoint samples of {sizes} examples do not fit into {pool} examples"
            raise ConfigError(Fault(what, path="acceptance", hint="make one of the three smaller"))
        if not self.least <= gradient <= pool:
            what = f"the first gradient has {min(gradient, pool)} of {pool} examples, but needs {self.least}"
            hint = f"{state.acceptance} of {state.size} are held out" if self._own else ""
            raise ConfigError(Fault(what, path="gradient", hint=hint))

    def _gradient(self, state: GrowingState, pool: Tensor) -> tuple[Int[Tensor, " g"], Int[Tensor, " m"]]:
        """The gradient sample, and what the curvature sample is taken from."""
        start = 0
        if not self.nested:
            if state.position + state.gradient > len(pool):
                state.epoch, state.position = state.epoch + 1, 0
            start = state.position
            state.position += state.gradient
            pool = pool[self._order(state, EPOCH, state.epoch, len(pool))]
        stop = start + state.gradient
        gradient = pool[start:stop]
        if not self._disjoint:
            return gradient, gradient
        # from its end, where a nested gradient sample comes last
        return gradient, torch.cat([pool[stop:], pool[:start]]).flip(0)

    def _shuffled(self, state: GrowingState, purpose: int, sample: Tensor) -> Int[Tensor, " n"]:
        return sample[self._order(state, purpose, state.draws, len(sample))]

    def _order(self, state: GrowingState, purpose: int, k: int, n: int) -> Int[Tensor, " n"]:
        """The k-th permutation of 0 … n − 1 for a purpose: a function of the run's seed."""
        key = (state.seed, k, n)
        known = state.cache.get(purpose)
        if known is not None and known[0] == key:
            return known[1]
        seed = ((state.seed * 1_000_003 + k) * 4 + purpose) % 2**63  # of the size that torch takes
        order = torch.randperm(n, generator=torch.Generator(device="cpu").manual_seed(seed), device="cpu")
        if purpose in (DATA, EPOCH):  # the others are asked for once
            state.cache[purpose] = key, order
        return order
