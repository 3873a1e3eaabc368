"""A method as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from curvlab.engine import saved
from curvlab.engine import step as one_step
from curvlab.engine.arms import Arm, Arms
from curvlab.engine.arrived import Arrived
from curvlab.engine.autocast import Autocasted, Cast, own_precision
from curvlab.engine.coverage import FROZEN, Coverage, joined, report
from curvlab.engine.facts import StepFacts, facts
from curvlab.engine.groups import resolve
from curvlab.engine.ladder import admitted, directed, evaluated, observed, planned
from curvlab.engine.live import live
from curvlab.engine.method import Method
from curvlab.engine.scaling import startable, unscaled_by
from curvlab.engine.settings import PEAK, Settings, share
from curvlab.engine.state import nbytes
from curvlab.engine.step import Hazard, Way
from curvlab.engine.stride import Stride
from curvlab.engine.undo import Undo
from curvlab.errors import ConfigError, Fault, NeedsObjective
from curvlab.model.admission import require_trainable
from curvlab.model.partition import empty, partition
from curvlab.model.readers.shipped import SHIPPED
from curvlab.objectives.ambient import Ambient, Reduction
from curvlab.objectives.distributed import DistributedObjective, require_alike
from curvlab.objectives.examples import Declared
from curvlab.objectives.ranks import Ranks, ranks_of
from curvlab.protocols.backend import Backend
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, StepOutcome
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.pieces import whole
from curvlab.protocols.reader import LayerReader
from curvlab.protocols.report import Event


class CurvatureOptimizer(torch.optim.Optimizer):
    """Trains every parameter of ``model`` that requires a gradient by ``method``.

    Blocks that the method's preconditioner refuses go to its fallback; without one, ``CoverageError``.
    ``step(objective)`` works for every method; a plain ``loss.backward(); step()`` for those that need
    no more than gradients and ``data`` or ``none`` labels (``NeedsObjective`` says what else was
    asked).  ``reduction`` says how the caller's own loss averages, ``examples`` how many examples a call of
    the model has where its first input does not say so.  ``ranks`` are the processes that train one model,
    each on its own examples (``DistributedObjective``); in a plain loop the gradients are then those that
    DistributedDataParallel has averaged.  ``groups`` are parameters whose settings differ (``resolve``).
    ``param_groups[i]["lr"]`` is the rate of a group; ``weight_decay``, ``momentum``, ``betas`` and
    ``damping`` there are live where the method has them.

    Parameters without a gradient in a step neither move nor decay, and their moments stay.  Parameters that
    were frozen and require a gradient later are trained from then on.  With ``strict``, a method that treats
    less than half of the model itself raises ``CoverageError``; otherwise it warns at the first step.
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
    ) -> None:
        require_trainable(model)
        self.given = method, seed, reduction, examples, strict, readers
        self.method, self.model, self.backend, self.name = startable(method), model, backend, name
        self.ranks, self.strict = require_alike(model, ranks), strict
        self.on_event = on_event or (lambda event: None)
        #: called with the outcome of every step, of the whole pass; a sampler learns from it
        self.on_learn: Callable[[StepOutcome], None] = lambda what: None
        #: what a sampler needs beside what the method needs
        self.wanted: Callable[[], Needs] = lambda: GRADIENT_ONLY
        self.generator = torch.Generator(device=backend.torch_device).manual_seed(seed)
        self.steps = 0
        self.last: StepFacts | None = None
        self.reported = False
        part = method.preconditioner
        self.blocks = partition(model, part.joins, None, part.reads, readers)
        if not self.blocks.members:
            raise ConfigError(Fault("no parameter of the model requires a gradient: nothing to train"))
        self._frozen = {n: p for n, p in model.named_parameters() if n not in self.blocks.parameters}
        self._kind = self.blocks.like.dtype, self.blocks.like.device
        self._groups(method, groups)
        self.settings = Settings(method, {p: n for n, p in model.named_parameters()})
        self.assignment = Arms(name, self.method, backend, self.generator, lambda event: self.on_event(event))
        self.assignment.assign(self.blocks, self.blocks.layout.names, self._apart)
        self.settings.apply(self.param_groups, self.assignment)
        self.arrived = Arrived.of(self.blocks) if self.method.step.arrives else None
        self.ambient = Ambient(self.blocks, cast(Reduction, reduction), self.ranks, examples)
        self.ambient.listen(self.needs(0))
        if strict:
            report(name, self.coverage(), strict=True)

    # what it is

    @property
    def arms(self) -> list[Arm]:
        """The method at work on its blocks, and its fallback on the others; the first speaks for the step."""
        return self.assignment.members

    def needs(self, step: int) -> Needs:
        """What step ``step`` (from 0) costs, over the method, its fallback and an adaptive sampler."""
        united = self.wanted()
        for arm in self.arms:
            united = united | arm.method.needs(step)
        return united

    def coverage(self) -> list[Coverage]:
        """How each parameter is treated and, if not by the method itself, why not.

        A parameter whose rows are in several blocks is listed once, unless they are treated apart.
        """
        rows, reasons = [], empty(self.model)
        for arm in self.arms:
            for block in arm.blocks.members:
                reason = self.assignment.refusal(self.blocks, block)
                for n in block.parameters:
                    shape = tuple(arm.blocks.value(n).shape)
                    rows.append(Coverage(n, shape, block.name, arm.treatment, reason))
        for n, p in self._frozen.items():
            rows.append(Coverage(n, tuple(p.shape), "", FROZEN, reasons.get(n, "requires_grad is False")))
        shapes = {n: tuple(p.shape) for n, p in self.model.named_parameters()}
        order = {n: k for k, n in enumerate(shapes)}
        return sorted(joined(rows, shapes), key=lambda row: order[whole(row.parameter)])

    def state_bytes(self) -> int:
        """Bytes the method holds beside parameters and gradients, exactly."""
        known = 0 if self.arrived is None else self.arrived.gradient.flat.nbytes
        return known + sum(nbytes(arm.state) for arm in self.arms)

    # training

    def step(  # torch's closure, or an objective, which is one
        self, closure: Objective | Callable[[], Any] | None = None
    ) -> Any:
        """One step.  Returns the loss of an objective, or what the closure returned.

        Under autocast the model is evaluated as its caller asks; the method computes in its own precision.
        Raises ``Diverged`` when the ladder is at its end.  Whatever is raised before the write: parameters,
        the states of every part, counters and the generator are then as before the step, bit for bit.
        """
        with Undo(self.generator) as undo:
            return self._step(closure, undo)

    def _step(self, closure: Any, undo: Undo) -> Any:
        self._require_unchanged()
        self._adopt()
        self.settings.apply(self.param_groups, self.assignment)
        seen, objective, loss = self._evaluated(closure, undo)
        if seen is None or not self._ready(seen):
            return loss
        with self.ambient.aside(), own_precision(self.blocks.like.device.type):
            outcomes = self._moved(seen, objective, undo)
            if self.arrived is not None and objective is not None:
                self.arrived.end(objective, seen, outcomes[0][0].step, self.blocks)
        first = self.arms[0].method.step.rate(self.steps) * share(self.param_groups[0])
        self.last = facts(self.method, seen, *outcomes[0], first)
        # a sampler judges the gradient of all blocks: the variance beside it is that of all
        self.on_learn(replace(outcomes[0][0], before=seen))
        one_step.release(self.arms, seen)
        self.steps += 1
        self.ambient.listen(self.needs(self.steps))
        return loss

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
        self._frozen.update({n: p for n, p in named.items() if n not in self.blocks.parameters})
        return None

    def _evaluated(self, closure: Any, undo: Undo) -> tuple[Evaluation | None, Objective | None, Any]:
        """The pass of this step, its objective, and what ``step`` returns; no pass if the step is skipped."""
        needs = self.needs(self.steps)
        if isinstance(closure, Objective):
            asked = closure if self.ranks is None else DistributedObjective(closure, self.ranks)
            cast = Cast.present(self.blocks.like.device.type)
            asked = asked if cast is None else Autocasted(asked, cast)
            ctx = self._context(self.arms[0], self.steps)
            self.ambient.clear()
            undo.keep(list(self.model.buffers()))  # batch normalisation's averages move with the evaluation
            with self.ambient.aside(), own_precision(self.blocks.like.device.type):
                known = None if self.arrived is None else self.arrived.begin(asked, needs, self.blocks)
                seen = known or evaluated(asked, needs, self.blocks, ctx, self.on_event)
            return seen, asked, seen.loss
        if needs.objective:
            raise NeedsObjective(f'{self._asking()} of method "{self.name}"', needs.objective)
        value, loss = None, None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
            loss = _scalar(value)
        scales = unscaled_by(self, needs)
        if scales is None:  # torch's GradScaler found an infinity: this step is not taken
            self.ambient.clear()
            self.on_event(Event("skipped-by-scaler", self.steps, {}))
            return None, None, value
        return self.ambient.collect(loss, *scales), None, value

    def _ready(self, seen: Evaluation) -> bool:
        """Give every block to the arm that can treat it in this step; whether anything has a gradient."""
        if self.blocks.untapped and self.assignment.hand_over(self.blocks.untapped) and self.strict:
            report(self.name, self.coverage(), strict=True)
        if seen.absent >= self.blocks.parameters.keys():
            return False
        if seen.absent:
            for arm in list(self.arms):
                missing = [b.name for b in arm.blocks.members if seen.absent.issuperset(b.parameters)]
                if missing and len(missing) < len(arm.blocks) and not arm.joint:
                    self.assignment.split(arm, missing)
        if not self.reported:
            self.reported = True
            report(self.name, self.coverage(), strict=False)
        return True

    @staticmethod
    def _without(arm: Arm, absent: Collection[str]) -> bool:
        return bool(absent) and all(p in absent for p in arm.blocks.parameters)

    def _moved(
        self, seen: Evaluation, objective: Objective | None, undo: Undo
    ) -> list[tuple[StepOutcome, Context]]:
        """All updates are computed and checked before any parameter is written; then all parts learn."""
        arms = [arm for arm in self.arms if not self._without(arm, seen.absent)]
        passes = [seen.restrict(arm.blocks.layout) for arm in arms]
        strides = [self.settings.stride(self.param_groups, arm, seen.absent) for arm in arms]
        order = admitted(arms, passes, [s.rate for s in strides], self.steps, undo)
        ways = {k: self._way(arms[k], passes[k], strides[k], undo, hazard) for k, hazard in order}
        plans = {k: planned(ways[k], objective, self.on_event, undo) for k, _ in order}
        undo.settle()
        for k, (what, _) in plans.items():
            one_step.write(ways[k], what)
        outcomes = [plans[k] for k in range(len(arms))]
        for k, (what, ctx) in enumerate(outcomes):
            if ways[k].moves:
                self._learned(arms[k], what, ctx)
            else:
                self.on_event(Event("preconditioner-initialized", self.steps, {"arm": arms[k].name}))
        return outcomes

    def _way(self, arm: Arm, mine: Evaluation, stride: Stride, undo: Undo, hazard: Hazard) -> Way:
        ctx = self._context(arm, self.steps)
        observed(arm, mine, ctx)
        if not arm.method.preconditioner.ready(arm.state.preconditioner):
            return one_step.rest(arm, mine, ctx, stride, hazard)
        v, at = one_step.before(arm, mine, ctx, stride)
        solve, ctx, modest = directed(arm, v, ctx, self.on_event, undo, unseen=hazard.unseen)
        return Way(arm, mine, v, at, solve, ctx, stride, hazard, modest and hazard.bounded)

    def _learned(self, arm: Arm, what: StepOutcome, ctx: Context) -> None:
        said = one_step.learned(arm, what, ctx)
        if not what.step.accepted:
            self.on_event(Event("rejected", self.steps, {"arm": arm.name, "damping": ctx.damping}))
        for event in said:
            self.on_event(event)

    def _asking(self) -> str:
        """The parts that ask for an objective in this step, by place."""
        parts = {
            f"{place} {type(part).__name__}": part.needs(self.steps)
            for arm in self.arms
            for place, part in (
                ("preconditioner", arm.method.preconditioner),
                ("damping", arm.method.damping),
                ("step", arm.method.step),
            )
        }
        return ", ".join(words for words, needs in parts.items() if needs.objective)

    def _context(self, arm: Arm, step: int) -> Context:
        damping = arm.method.damping.at(arm.state.damping, step)
        return Context(step, damping, self.backend, self.generator)

    # the model and its groups

    def _groups(self, method: Method, groups: Sequence[Mapping[str, Any]]) -> None:
        """Hand torch its groups."""
        named = dict(self.model.named_parameters())
        rate = self.method.step.rate(0)
        defaults = live(method)
        if rate == 0:  # a schedule that begins with zero: the group's rate multiplies it
            rate = defaults["lr"] = 1.0
        resolved = resolve(self.model, groups, method)
        self._homes = {n: k for k, g in enumerate(resolved) for n in g.names}
        listed = [
            {"params": [named[n] for n in g.names if n not in self._frozen], **g.settings} for g in resolved
        ]
        # "initial_lr" is torch's schedulers' own: the rate that "lr" is a multiple of goes by another name
        own = self.method is not method and self.method.fallback is method.fallback
        zero = {PEAK: 0.0} if own else {}
        super().__init__(listed, {**defaults, "rule_lr": rate, **zero})

    def _apart(self, block: Block) -> tuple[Any, ...]:
        return self.settings.shared(self.param_groups, block)

    def _require_unchanged(self) -> None:
        """Raise ``ConfigError`` if the model was moved or converted since the optimizer was made."""
        like = self.blocks.like
        if (like.dtype, like.device) != self._kind:
            was, now = (f"{dtype} on {device}" for dtype, device in (self._kind, (like.dtype, like.device)))
            raise ConfigError(
                Fault(
                    f"the model's parameters are {now}, but were {was} when the optimizer was made",
                    hint="convert or move the model first, and then make the optimizer",
                )
            )

    def _adopt(self) -> None:
        """Train parameters that were frozen and require a gradient now."""
        thawed = [n for n, p in self._frozen.items() if p.requires_grad and p.numel()]
        if not thawed:
            return
        require_trainable(self.model)
        placed = {id(p) for group in self.param_groups for p in group["params"]}
        for n in thawed:
            if id(self._frozen[n]) not in placed:
                self.param_groups[self._homes[n]]["params"].append(self._frozen[n])
        known = set(self.blocks.layout.names)
        part = self.method.preconditioner
        self.blocks = partition(self.model, part.joins, self.blocks, part.reads, self.given[-1])
        self._frozen = {n: p for n, p in self._frozen.items() if n not in self.blocks.parameters}
        fresh = [n for n in self.blocks.layout.names if n not in known]
        self.assignment.drop(known.difference(self.blocks.layout.names))
        self.assignment.assign(self.blocks, fresh, self._apart)
        self.settings.forget()
        self.ambient.cover(self.blocks)
        self.ambient.listen(self.needs(self.steps))

    # state

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Every state as named tensors (live) and plain values, for a checkpoint."""
        return saved.snapshot(self)

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take on what ``snapshot`` gave, on the same method and model; raises ``CheckpointError``."""
        saved.restore(self, tensors, plain)

    def state_dict(self) -> dict[str, Any]:
        """torch's two keys: a block's tensors under its first parameter, plain values in the first group."""
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
        other = memo[id(self)] = _rebuilt(*copy.deepcopy(saved.made_of(self), memo))
        other.on_event = self.on_event
        other.restore(*self.snapshot())
        other.reported = self.reported
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew on its model, and given this one's state; ``on_event`` and hooks stay behind."""
        return _rebuilt, saved.made_of(self), (*self.snapshot(), self.reported)

    def __setstate__(self, state: Any) -> None:
        tensors, plain, self.reported = state
        self.restore(tensors, plain)


def _rebuilt(
    given: tuple[Any, ...],
    model: nn.Module,
    backend: Backend,
    name: str,
    distributed: bool,
    groups: list[list[str]],
) -> CurvatureOptimizer:
    """The optimizer made anew, as it was before its first step."""
    method, seed, reduction, examples, strict, readers = given
    named = dict(model.named_parameters())
    return CurvatureOptimizer(
        method,
        model,
        backend=backend,
        seed=seed,
        reduction=reduction,
        name=name,
        ranks=ranks_of("world") if distributed else None,
        groups=[{"params": [named[n] for n in names]} for names in groups] if len(groups) > 1 else (),
        examples=examples,
        strict=strict,
        readers=readers,
    )


def _scalar(value: Any) -> Tensor | None:
    """The loss that a closure returned, if that is what it returned."""
    if isinstance(value, Tensor):
        return value if value.numel() == 1 else None
    return torch.tensor(float(value)) if isinstance(value, (int, float)) else None
