"""A method at work on a model: which arm treats which block, what a step reads, and the step itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from curvlab.engine.agreement import ALONE, Agreement
from curvlab.engine.arms import Arm, Arms
from curvlab.engine.averaging import Averaging
from curvlab.engine.companions import Companions
from curvlab.engine.coverage import Coverage, coverage_of, report
from curvlab.engine.facts import facts
from curvlab.engine.gradient_cache import GradientCache
from curvlab.engine.loss_scale import LossScale, LossScaleOverflow
from curvlab.engine.method import Method
from curvlab.engine.owners import owners_of
from curvlab.engine.passes import Passes, require_own_passes
from curvlab.engine.rates import ParameterRates
from curvlab.engine.scaling import unscaled_by
from curvlab.engine.settings import Settings, share
from curvlab.engine.source import FromBackward, FromObjective, Source, asked_by
from curvlab.engine.state import nbytes
from curvlab.engine.step import StepEnvironment, take_step
from curvlab.engine.trained import Trained
from curvlab.engine.with_average import WithAverage
from curvlab.errors import NeedsObjective
from curvlab.linalg.work import without_autocast
from curvlab.model.rerun.replacement import Generators
from curvlab.objectives.ambient import Ambient, Reduction
from curvlab.objectives.examples import Declared
from curvlab.objectives.ranks import Ranks
from curvlab.protocols.arithmetic import under
from curvlab.protocols.average import Average
from curvlab.protocols.backend import Backend
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.report import Event, StepFacts
from curvlab.protocols.sampler import SampleStream


class MethodOnModel(WithAverage):
    """Base of ``CurvatureOptimizer``, whose docstring defines the arguments: all of it that is not torch's.

    ``trained`` are the parameters in blocks; ``homes`` maps each parameter to the index of its group.
    ``param_groups`` must be there before the constructor is called: a group's live settings are read from it
    at every step, and thawed parameters are added to it.
    """

    param_groups: list[dict[str, Any]]

    def __init__(
        self,
        method: Method,
        trained: Trained,
        homes: Mapping[str, int],
        *,
        backend: Backend,
        seed: int,
        reduction: str,
        name: str,
        on_event: Callable[[Event], None] | None,
        ranks: Ranks | None,
        examples: Declared,
        strict: bool,
        samples: SampleStream[Any] | None,
        placement: str,
        companions: Companions | None,
        average: Average[Any] | None,
    ) -> None:
        self.trained, self.method, self.model, self.backend = trained, method, trained.model, backend
        self.name, self.ranks, self.strict, self.samples = name, ranks, strict, samples
        self.companions, self._homes = companions, homes
        sharded = trained.shards is not None
        self.averaging = None if average is None else Averaging(average, self.model, backend, sharded=sharded)
        self.on_event = on_event or (lambda event: None)
        self.generator = torch.Generator(device=backend.torch_device).manual_seed(seed)
        self.steps = 0
        self.last: StepFacts | None = None
        self.reported = self.told_of_part = False
        self.settings = Settings(method, {p: n for n, p in self.model.named_parameters()})
        self.assignment = Arms(
            name, method, backend, self.generator, lambda event: self.on_event(event), self._held
        )
        if companions is not None:
            self.assignment.ridge = companions.block_ridge
        self.owners = owners_of(placement, ranks, method, self._falls, sharded=sharded)
        if self.owners is not None:
            self.assignment.share = self.owners.ranks.rank
        self._share_out()
        self.assignment.assign(self.blocks, self.blocks.layout.names, self._apart)
        self.settings.apply(self.param_groups, self.assignment)
        rule = backend.loss_scaling
        self.scale = None if rule is None else LossScale(rule)
        # a θ rounded by chance is not the one that the search has evaluated
        exact = backend.parameter_rounding == "nearest"
        self.cache = GradientCache.of(self.blocks) if method.step.carries_gradient and exact else None
        self.ambient = Ambient(
            self.blocks,
            cast(Reduction, reduction),
            ranks,
            examples,
            backend.dtypes.rows,
            None if self.owners is None else self.owners.of,
        )
        self.ambient.listen(self.needs(0))
        if strict:
            report(name, self.coverage(), strict=True)

    @property
    def blocks(self) -> Blocks:
        """What is treated jointly, over all arms."""
        return self.trained.blocks

    @property
    def arms(self) -> list[Arm]:
        """The method at work on its blocks, and its fallback on the others; the first speaks for the step."""
        return self.assignment.members

    def needs(self, step: int) -> Needs:
        """What step ``step`` (from 0) costs, over the method, its fallback and an adaptive sampler."""
        needs = self.assignment.needs(step)
        return needs if self.samples is None else self.samples.needs() | needs

    def coverage(self) -> list[Coverage]:
        """How each parameter is treated and, if not by the method itself, why not."""
        return coverage_of(self.model, self.assignment, self.blocks, self.trained.frozen)

    def state_bytes(self) -> int:
        """Bytes the method holds in this process beside parameters and gradients, exactly."""
        known = 0 if self.cache is None else self.cache.gradient.flat.nbytes
        averages = 0 if self.averaging is None else nbytes(self.averaging.state)
        return known + averages + sum(nbytes(arm.state) for arm in self.arms)

    # one step

    def _prepare(self) -> None:
        """Take on what changed since the last step: thawed parameters, and the settings of groups.

        Raises ``ConfigError`` for a model that was moved or converted, ``UsageError`` inside ``averaged()``.
        """
        if self.trained.shards is not None:
            self.trained.shards.reshard()
        self.trained.require_unchanged()
        self._require_steppable(self.trained.thawed())
        self._adopt()
        self.settings.apply(self.param_groups, self.assignment)

    def _take(self, source: Source) -> None:
        """One step from what ``source`` evaluates; not taken where the loss scale overflows."""
        env = StepEnvironment(
            self.assignment,
            self.blocks,
            self._allot,
            self._rates,
            self._quiet,
            self.samples,
            self.owners,
        )
        random = None if self.scale is None else Generators.now(self.blocks.like.device)
        try:
            taken = take_step(source, env, self.steps)
        except LossScaleOverflow:
            self._overflowed(random)
            return
        if taken is None:
            return
        rate = self.arms[0].method.step.rate(self.steps) * share(self.param_groups[0])
        self.last = facts(self.method, taken, rate)
        self._follow(self.steps, rate)
        self.steps += 1
        if self.scale is not None:
            self.scale.succeeded()
        self.ambient.listen(self.needs(self.steps))

    def _source(self, closure: Objective | Callable[[], Any] | None) -> Source:
        """What this step evaluates; raises ``NeedsObjective`` where an objective is missing."""
        needs, emit = self.needs(self.steps), self.assignment.emit
        if isinstance(closure, Objective):
            passes = Passes.of(self.backend, self.blocks.like.device.type, self.scale)
            asked = asked_by(closure, self.companions, self.model, self.ranks, self.owners, passes)
            agreement = ALONE if self.owners is None else Agreement(self.ranks)
            self.ambient.clear()
            return FromObjective(
                asked, needs, self.blocks, self._quiet, self.cache, emit, self.scale is not None, agreement
            )
        require_own_passes(self.backend)
        if needs.objective:
            asking = self.assignment.needing_objective(self.steps)
            raise NeedsObjective(f'{asking} of method "{self.name}"', needs.objective)
        return FromBackward(self.ambient, closure, partial(unscaled_by, self, needs), emit)

    def _overflowed(self, random: Generators | None) -> None:
        """A step overflowed under the loss scale: it is as if its batch had not come, at a lower scale."""
        assert self.scale is not None
        if random is not None:
            random.restore()
        self.scale.overflowed(self.steps)
        self.assignment.emit(Event("loss-scale-overflow", self.steps, {"scale": self.scale.value}))

    def _allot(self, seen: Evaluation) -> Sequence[Arm]:
        """Give every block to the arm that can treat it in this step; the arms that have a gradient."""
        if self.blocks.untapped and self.assignment.hand_over(self.blocks.untapped) and self.strict:
            report(self.name, self.coverage(), strict=True)
        arms = self.assignment.taking_part(seen)
        if arms and not self.reported:
            self.reported = True
            report(self.name, self.coverage(), strict=False)
            if self.companions is not None and self.steps == 0:
                self.companions.report(arms, self.assignment.emit)
        return arms

    def _rates(self, arm: Arm, seen: Evaluation) -> ParameterRates:
        rates = self.settings.rates(self.param_groups, arm, seen.absent)
        if self.companions is not None:
            rates = rates.times(self.companions.rates())
        return rates if arm.state.master is None else replace(rates, master=arm.state.master)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Inside, nothing is recorded, and the method computes in its own precision."""
        device = self.blocks.like.device
        with self.ambient.aside(), without_autocast(device), under(self.backend.arithmetic):
            yield

    # several processes

    def _held(self, blocks: Blocks) -> Blocks:
        """Those of these blocks that this process computes with."""
        return blocks if self.owners is None else self.owners.mine(blocks)

    def _falls(self, block: Block) -> bool:
        """Whether the fallback treats a block."""
        return bool(self.assignment.refusal(self.blocks, block))

    def _share_out(self) -> None:
        """Blocks that have no owner yet get one."""
        if self.owners is not None:
            self.owners.extend(self.blocks.members)

    # outside of a step

    def _context(self, arm: Arm, step: int) -> Context:
        """What the parts of an arm are given in a step, for evaluations outside of one."""
        return self.assignment.context(arm, step)

    def _apart(self, block: Block) -> tuple[Any, ...]:
        return self.settings.shared(self.param_groups, block)

    def _adopt(self) -> None:
        """Train parameters that were frozen and require a gradient now."""
        thawed = self.trained.thawed()
        if not thawed:
            return
        placed = {id(p) for group in self.param_groups for p in group["params"]}
        added = {n: self.trained.frozen[n] for n in thawed}
        fresh, gone = self.trained.adopt()
        for n, p in added.items():
            if id(p) not in placed:
                self.param_groups[self._homes[n]]["params"].append(p)
        self.assignment.drop(gone)
        self._share_out()
        self.assignment.assign(self.blocks, fresh, self._apart)
        self.settings.forget()
        self.ambient.cover(self.blocks)
        self.ambient.listen(self.needs(self.steps))
