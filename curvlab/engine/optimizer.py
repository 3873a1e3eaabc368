"""A method as a ``torch.optim.Optimizer``: what torch's tools need of one."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from curvlab.engine import saved
from curvlab.engine.agreement import ALONE, Agreement
from curvlab.engine.arms import Arm, Arms
from curvlab.engine.averaging import Averaging
from curvlab.engine.companions import Companions
from curvlab.engine.coverage import Coverage, coverage_of, report
from curvlab.engine.facts import facts
from curvlab.engine.gradient_cache import GradientCache
from curvlab.engine.groups import resolve
from curvlab.engine.live import live
from curvlab.engine.loss_scale import LossScale, LossScaleOverflow
from curvlab.engine.method import Method
from curvlab.engine.owners import owners_of
from curvlab.engine.passes import Passes, require_own_passes
from curvlab.engine.rates import ParameterRates
from curvlab.engine.scaling import startable, unscaled_by
from curvlab.engine.settings import PEAK, Settings, share
from curvlab.engine.source import FromBackward, FromObjective, Source, asked_by
from curvlab.engine.state import nbytes
from curvlab.engine.step import StepEnvironment, take_step
from curvlab.engine.trained import Trained
from curvlab.engine.with_average import WithAverage
from curvlab.errors import ConfigError, Fault, NeedsObjective
from curvlab.linalg.work import without_autocast
from curvlab.model.readers.shipped import SHIPPED
from curvlab.model.rerun.replacement import Generators
from curvlab.objectives.ambient import Ambient, Reduction
from curvlab.objectives.distributed import require_alike
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
from curvlab.protocols.reader import LayerReader
from curvlab.protocols.report import Event, StepFacts
from curvlab.protocols.sampler import SampleStream


class CurvatureOptimizer(WithAverage, torch.optim.Optimizer):
    """Trains every parameter of ``model`` that requires a gradient by ``method``.

    Blocks that the method's preconditioner refuses go to its fallback; without one, ``CoverageError``.
    ``step(objective)`` works for every method; a plain ``loss.backward(); step()`` for those that need
    no more than gradients and ``data`` or ``none`` labels (``NeedsObjective`` says what else was
    asked).  ``reduction`` says how the caller's own loss averages, ``examples`` how many examples a call of
    the model has where its first input does not say so.  ``ranks`` are the processes that train one model,
    each on its own examples (``DistributedObjective``); in a plain loop the gradients are then those that
    DistributedDataParallel has averaged; ``placement`` says whether they share the blocks out among them
    (``owners_of``).  ``groups`` are parameters whose settings differ (``resolve``).
    ``param_groups[i]["lr"]`` is the rate of a group; ``weight_decay``, ``momentum``, ``betas`` and
    ``damping`` there are live where the method has them.

    Parameters without a gradient in a step neither move nor decay, and their moments stay.  Parameters that
    were frozen and require a gradient later are trained from then on.  With ``strict``, a method that treats
    less than half of the model itself raises ``CoverageError``; otherwise it warns at the first step.
    ``companions`` are the callbacks of a run; their penalties and rates need objectives.  ``average`` is kept
    of the weights (``averaged``).
    """

    #: torch's GradScaler then hands its scale over instead of unscaling gradients alone
    _step_supports_amp_scaling = True

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        *,
        backend: Backend,
        seed: int = 0,
        reduction: str = "mean",
        name: str = "method",
        on_event: Callable[[Event], None] | None = None,
        ranks: Ranks | None = None,
        groups: Sequence[Mapping[str, Any]] = (),
        examples: Declared = None,
        strict: bool = False,
        readers: Sequence[LayerReader] = SHIPPED,
        samples: SampleStream[Any] | None = None,
        placement: str = "auto",
        companions: Companions | None = None,
        average: Average[Any] | None = None,
    ) -> None:
        self.trained = Trained(model, method.preconditioner, readers)
        self.given = method, seed, reduction, examples, strict, readers, placement, average
        self.method, self.model, self.backend, self.name = startable(method), model, backend, name
        self.ranks = require_alike(model, ranks, self.trained.shards)
        self.strict, self.samples = strict, samples
        self.companions = companions
        sharded = self.trained.shards is not None
        self.averaging = None if average is None else Averaging(average, model, backend, sharded=sharded)
        self.on_event = on_event or (lambda event: None)
        self.generator = torch.Generator(device=backend.torch_device).manual_seed(seed)
        self.steps = 0
        self.last: StepFacts | None = None
        self.reported = self.told_of_part = False
        self._groups(method, groups)
        self.settings = Settings(method, {p: n for n, p in model.named_parameters()})
        self.assignment = Arms(
            name, self.method, backend, self.generator, lambda event: self.on_event(event), self._held
        )
        if companions is not None:
            self.assignment.ridge = companions.block_ridge
        self.owners = owners_of(placement, self.ranks, self.method, self._falls, sharded=sharded)
        if self.owners is not None:
            self.assignment.share = self.owners.ranks.rank
        self._share_out()
        self.assignment.assign(self.blocks, self.blocks.layout.names, self._apart)
        self.settings.apply(self.param_groups, self.assignment)
        rule = backend.loss_scaling
        self.scale = None if rule is None else LossScale(rule)
        # a θ rounded by chance is not the one that the search has evaluated
        exact = backend.parameter_rounding == "nearest"
        self.cache = GradientCache.of(self.blocks) if self.method.step.carries_gradient and exact else None
        self.ambient = Ambient(
            self.blocks,
            cast(Reduction, reduction),
            self.ranks,
            examples,
            backend.dtypes.rows,
            None if self.owners is None else self.owners.of,
        )
        self.ambient.listen(self.needs(0))
        if strict:
            report(name, self.coverage(), strict=True)

    # what it is

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

    # training

    def step(  # torch's closure, or an objective, which is one
        self, closure: Objective | Callable[[], Any] | None = None
    ) -> Any:
        """One step.  Returns the loss of an objective, or what the closure returned.

        Under autocast the model is evaluated as its caller asks; the method computes in its own precision.
        Under a precision that scales the loss, a step that overflows is not taken, and the event
        ``loss-scale-overflow`` says so.  Raises ``Diverged`` when the ladder is at its end.  Whatever is
        raised before the write: parameters, the states of every part, counters and the generator are then as
        before the step, bit for bit.
        """
        if self.trained.shards is not None:
            self.trained.shards.reshard()
        self.trained.require_unchanged()
        self._require_steppable(self.trained.thawed())
        self._adopt()
        self.settings.apply(self.param_groups, self.assignment)
        source = self._source(closure)
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
            taken = None
            self._overflowed(random)
        if taken is not None:
            rate = self.arms[0].method.step.rate(self.steps) * share(self.param_groups[0])
            self.last = facts(self.method, taken, rate)
            self._follow(self.steps, rate)
            self.steps += 1
            if self.scale is not None:
                self.scale.succeeded()
            self.ambient.listen(self.needs(self.steps))
        return source.returned

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and what was recorded beside them."""
        super().zero_grad(set_to_none)
        if hasattr(self, "ambient"):
            self.ambient.clear()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of the model's parameters that are in none yet, as torch's optimizers do.

        Raises ``ConfigError`` for parameters of another model.
        """
        if not hasattr(self, "settings"):  # torch's constructor adds the first ones
            return super().add_param_group(param_group)
        group = resolve(self.model, [param_group], self.given[0])[-1]
        named = {n: p for n, p in self.model.named_parameters() if n in group.names}
        super().add_param_group({**group.settings, "params": list(named.values())})
        self.settings.names.update({p: n for n, p in named.items()})
        self.trained.frozen.update({n: p for n, p in named.items() if n not in self.blocks.parameters})
        return None

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

    # the model and its groups

    def _groups(self, method: Method, groups: Sequence[Mapping[str, Any]]) -> None:
        """Hand torch its groups."""
        named, frozen = dict(self.model.named_parameters()), self.trained.frozen
        rate = self.method.step.rate(0)
        defaults = live(method)
        if rate == 0:  # a schedule that begins with zero: the group's rate multiplies it
            rate = defaults["lr"] = 1.0
        resolved = resolve(self.model, groups, method)
        self._homes = {n: k for k, g in enumerate(resolved) for n in g.names}
        listed = [{"params": [named[n] for n in g.names if n not in frozen], **g.settings} for g in resolved]
        # "initial_lr" is torch's schedulers' own: the rate that "lr" is a multiple of goes by another name
        own = self.method is not method and self.method.fallback is method.fallback
        zero = {PEAK: 0.0} if own else {}
        super().__init__(listed, {**defaults, "rule_lr": rate, **zero})

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

    # state

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Every state as named tensors (live) and plain values, for a checkpoint."""
        return saved.snapshot(self)

    def whole_snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """``snapshot`` of the states of all processes, on the first of them; every one must ask.

        Where each holds a state of its own blocks (``placement``), the first gets the others'; what the
        others are given is of no use.  Elsewhere it is ``snapshot``.
        """
        return saved.whole_snapshot(self)

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take on what ``snapshot`` gave, on the same method and model; raises ``CheckpointError``."""
        saved.restore(self, tensors, plain)

    def state_dict(self) -> dict[str, Any]:
        """torch's two keys: a block's tensors under its first parameter, plain values in the first group.

        Where processes share the blocks out, it holds what this one owns, and warns so once.
        """
        saved.warn_of_part(self)
        return saved.with_plain(super().state_dict(), self.snapshot()[1])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take on a ``state_dict``; tensors keep this optimizer's dtypes, and are copied, not shared.

        Raises ``CheckpointError`` for a state of another optimizer, model or number of groups.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)  # type: ignore[arg-type]
            state_dict = state_dict if changed is None else changed
        self.restore(*saved.taken_apart(state_dict, self.param_groups))
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The live state as torch's tools look at it: tensors under the first parameter of their block.

        Made when it is looked at, so that it is never of yesterday and keeps nothing alive.
        """
        return saved.shown(self)

    @state.setter
    def state(self, value: Mapping[Tensor, Any]) -> None:
        """An empty one begins anew, as with torch's optimizers; raises ``ConfigError`` for any other."""
        if value:
            raise ConfigError(
                Fault("optimizer.state of curvlab cannot be assigned", hint="use load_state_dict()")
            )
        if hasattr(self, "assignment"):  # torch's constructor sets one before there is any
            self.assignment.renew()
            self.settings.forget()
            self.steps = 0
            self.ambient.listen(self.needs(0))

    # copies

    def __deepcopy__(self, memo: dict[int, Any]) -> CurvatureOptimizer:
        other = memo[id(self)] = rebuilt(copy.deepcopy(saved.recipe(self), memo))
        other.on_event = self.on_event
        other.restore(*self.snapshot())
        other.reported = self.reported
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew on its model, and given this one's state; ``on_event`` and hooks stay behind."""
        return rebuilt, (saved.recipe(self),), (*self.snapshot(), self.reported)

    def __setstate__(self, state: Any) -> None:
        tensors, plain, self.reported = state
        self.restore(tensors, plain)


def rebuilt(recipe: saved.Recipe) -> CurvatureOptimizer:
    """The optimizer made anew, as it was before its first step."""
    return CurvatureOptimizer(**recipe.arguments())
