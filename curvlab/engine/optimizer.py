"""A method as a ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from curvlab.engine import step as one_step
from curvlab.engine.ladder import admitted, directed, evaluated, looks_once, observed, planned
from curvlab.engine.method import Arm, Coverage, Method
from curvlab.engine.state import export, nbytes, restore
from curvlab.engine.step import Way
from curvlab.engine.undo import Undo
from curvlab.errors import CheckpointError, ConfigError, CoverageError, Fault, NeedsObjective
from curvlab.model.partition import partition
from curvlab.objective.ambient import Ambient, Reduction
from curvlab.objective.joint import Joint, require_alike
from curvlab.objective.ranks import Ranks
from curvlab.protocols.backend import Backend
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Aftermath, Pass
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.report import Event

#: version of the layout of ``state_dict`` and ``snapshot``
STATE_VERSION = 1


@dataclass(frozen=True)
class StepFacts:
    """What is known of the last step, as plain numbers: nothing of it is held in tensors."""

    loss: float
    lr: float
    damping: float | None = None
    cg_iterations: int | None = None
    products: int | None = None
    product_examples: int | None = None
    reduction_ratio: float | None = None
    accepted: bool | None = None
    gradient_size: int | None = None
    curvature_size: int | None = None


class CurvatureOptimizer(torch.optim.Optimizer):
    """Trains every parameter of ``model`` that requires a gradient by ``method``.

    Blocks that the method's preconditioner refuses go to its fallback; without one, ``CoverageError``.
    ``step(objective)`` works for every method; a plain ``loss.backward(); step()`` for those that need
    no more than gradients and ``data`` or ``none`` labels (``NeedsObjective`` says what else was
    asked).  ``reduction`` says how the caller's own loss averages.  ``ranks`` are the processes that train
    one model, each on its own examples (``Joint``); in a plain loop the gradients are then those that
    DistributedDataParallel has averaged.  ``param_groups[0]["lr"]`` shows the
    step rule's rate and multiplies it, for torch's schedulers.
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
    ) -> None:
        self.method, self.model, self.backend, self.name = method, model, backend, name
        self.ranks = require_alike(model, ranks)
        self.on_event = on_event or (lambda event: None)
        #: told of every step: the whole pass, and what the method's own blocks made of it; a sampler listens
        self.on_learn: Callable[[Aftermath], None] = lambda what: None
        #: what that listener wants to be evaluated beside what the method needs
        self.wanted: Callable[[], Needs] = lambda: GRADIENT_ONLY
        self.generator = torch.Generator(device=backend.torch_device).manual_seed(seed)
        self.steps = 0
        self.last: StepFacts | None = None
        self.blocks = partition(model, method.preconditioner.joins)
        if not self.blocks.members:
            raise ConfigError(Fault("no parameter of the model requires a gradient: nothing to train"))
        lr = method.step.rate(0)
        # "initial_lr" is torch's schedulers' own: the rate that "lr" is a multiple of goes by another name
        super().__init__(list(self.blocks.parameters.values()), {"lr": lr, "rule_lr": lr})
        self.arms = self._arms()
        self.ambient = Ambient(self.blocks, cast(Reduction, reduction), self.ranks)
        self.ambient.listen(self.needs(0))

    # what it is

    def needs(self, step: int) -> Needs:
        """What step ``step`` (from 0) costs, over the method, its fallback and an adaptive sampler."""
        united = self.wanted()
        for arm in self.arms:
            united = united | arm.method.needs(step)
        return united

    def coverage(self) -> list[Coverage]:
        """How each parameter is treated and, if not by the method itself, why not."""
        rows = []
        for arm in self.arms:
            for block in arm.blocks.members:
                reason = self._refusal(block)
                for p in block.parameters:
                    shape = tuple(arm.blocks.parameters[p].shape)
                    rows.append(Coverage(p, shape, block.name, arm.name, reason))
        trained = {row.parameter for row in rows}
        frozen = [(n, p) for n, p in self.model.named_parameters() if n not in trained]
        rows += [Coverage(n, tuple(p.shape), "", "frozen", "requires_grad is False") for n, p in frozen]
        order = {n: k for k, (n, _) in enumerate(self.model.named_parameters())}
        return sorted(rows, key=lambda row: order[row.parameter])

    def state_bytes(self) -> int:
        """Bytes the method holds beside parameters and gradients, exactly."""
        return sum(nbytes(arm.state) for arm in self.arms)

    # training

    def step(  # type: ignore[override]  # torch's closure, or an objective, which is one
        self, closure: Objective | Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """One step.  Returns the loss, if it was evaluated here.

        Raises ``Diverged`` when the ladder is at its end.  Whatever is raised before the write: parameters,
        the states of every part, counters and the generator are then as before the step, bit for bit.
        """
        with Undo(self.generator) as undo:
            return self._step(closure, undo)

    def _step(self, closure: Objective | Callable[[], Tensor] | None, undo: Undo) -> Tensor | None:
        needs = self.needs(self.steps)
        ctx = self._context(self.arms[0], self.steps)
        if isinstance(closure, Objective):
            asked = closure if self.ranks is None else Joint(closure, self.ranks)
            objective: Objective | None = asked
            self.ambient.clear()
            with self.ambient.aside():
                seen = evaluated(asked, needs, self.blocks, ctx, self.on_event)
            loss: Tensor | None = seen.loss
        else:
            if needs.objective:
                raise NeedsObjective(f'{self._asking()} of method "{self.name}"', needs.objective)
            objective, loss = None, None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            loss_scale = self._loss_scale(needs)
            if loss_scale is None:  # torch's GradScaler found an infinity: this step is not taken
                self.ambient.clear()
                self.on_event(Event("skipped-by-scaler", self.steps, {}))
                return loss
            seen = self.ambient.collect(loss, loss_scale)
        if self.steps == 0 and self.blocks.untapped and self.method.fallback is not None:
            self.arms = self._arms()  # nothing is remembered yet, so blocks can still change hands
        with self.ambient.aside():  # products, trial losses and trial gradients
            outcomes = self._moved(seen, objective, undo)
        self.last = self._facts(seen, outcomes[0])
        # a sampler judges the gradient of all blocks: the variance beside it is of them all
        self.on_learn(replace(outcomes[0][0], before=seen))
        one_step.release(self.arms, seen)
        self.steps += 1
        self.ambient.listen(self.needs(self.steps))
        return loss

    def _loss_scale(self, needs: Needs) -> float | None:
        """What ``torch.amp.GradScaler`` multiplied the loss by; ``None`` if it found an infinity.

        Such a scaler leaves ``found_inf`` on the optimizer, and ``grad_scale`` unless the caller has
        unscaled the gradients: the layer statistics, which nobody unscaled, are then of unknown scale.
        """
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and float(found_inf) > 0:
            return None
        if grad_scale is not None:
            return float(grad_scale)
        if found_inf is not None and needs.layers:
            raise ConfigError(
                Fault(
                    "scaler.unscale_() was called before step(): the layer statistics still carry its scale",
                    hint='leave unscaling to scaler.step(), and clip with on_gradient = [{ use = "clip" }]',
                )
            )
        return 1.0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Called by torch's constructor for the one group there is; raises ``ConfigError`` for another."""
        if self.param_groups:
            raise ConfigError(
                Fault(
                    "a curvlab optimizer has one group of parameters, those of its model",
                    hint='treat blocks differently with [method.preconditioner] use = "routed"',
                )
            )
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and what was captured beside them."""
        super().zero_grad(set_to_none)
        self.ambient.clear()

    def _moved(self, seen: Pass, objective: Objective | None, undo: Undo) -> list[tuple[Aftermath, Context]]:
        """All updates are computed and looked at before any parameter is written; then all parts learn."""
        passes = [seen.restrict(arm.blocks.layout) for arm in self.arms]
        rates = [self._rate() for _ in self.arms]
        order = admitted(self.arms, passes, rates, self.steps, undo)
        ways = {k: self._way(self.arms[k], passes[k], undo, may_fail) for k, may_fail in order}
        plans = {k: planned(ways[k], objective, self.on_event, undo) for k, _ in order}
        undo.settle()
        outcomes = [plans[k] for k in range(len(self.arms))]
        for k, (what, _) in enumerate(outcomes):
            one_step.write(ways[k], what)
        for arm, (what, ctx) in zip(self.arms, outcomes, strict=True):
            self._go(arm, what, ctx)
        return outcomes

    def _way(self, arm: Arm, mine: Pass, undo: Undo, fallible: bool) -> Way:
        ctx, rate = self._context(arm, self.steps), self._rate()
        observed(arm, mine, ctx)
        v, at = one_step.before(arm, mine, ctx, rate)
        unseen = looks_once(arm, fallible)
        solve, ctx = directed(arm, v, ctx, self.on_event, undo, unseen=unseen)
        return Way(arm, mine, v, at, solve, ctx, rate, fallible)

    def _go(self, arm: Arm, what: Aftermath, ctx: Context) -> None:
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

    def _rate(self) -> float:
        group = self.param_groups[0]
        own = float(group["rule_lr"])
        return float(group["lr"]) / own if own else 1.0

    def _context(self, arm: Arm, step: int) -> Context:
        damping = arm.method.damping.at(arm.state.damping, step)
        return Context(step, damping, self.backend, self.generator)

    def _facts(self, seen: Pass, outcome: tuple[Aftermath, Context]) -> StepFacts:
        what, ctx = outcome
        asks = self.method.step.needs(self.steps)
        searched = asks.losses or asks.products or asks.gradients
        iterative = what.solve.iterations > 0
        count = getattr(seen.ggn, "count", None)
        return StepFacts(
            loss=float(seen.loss),
            lr=self.method.step.rate(self.steps) * self._rate() if not searched else what.step.alpha,
            damping=ctx.damping,
            cg_iterations=what.solve.iterations if iterative else None,
            products=count,
            product_examples=None if count is None else count * seen.curvature_examples,
            reduction_ratio=what.ratio,
            accepted=what.step.accepted if searched else None,
            gradient_size=seen.examples,
            curvature_size=seen.curvature_examples if seen.ggn is not None else None,
        )

    # blocks

    def _arms(self) -> list[Arm]:
        refused = [b for b in self.blocks.members if self._refusal(b)]
        fallback = self.method.fallback
        if refused and fallback is None:
            raise CoverageError(
                *(
                    Fault(
                        f'method "{self.name}" does not treat {", ".join(b.parameters)}: {self._refusal(b)}',
                        hint="give it a [method.fallback] that treats any parameter (`curvlab methods`)",
                    )
                    for b in refused
                )
            )
        if refused and fallback is not None:
            still = [b for b in refused if fallback.preconditioner.refuses(b)]
            if still:
                nobody = ", ".join(p for b in still for p in b.parameters)
                raise CoverageError(Fault(f"neither the method nor its fallback treats {nobody}"))
        names = [b.name for b in refused]
        main = self.blocks.select([b.name for b in self.blocks.members if b.name not in names])
        arms = [(self.name, self.method, main)] if len(main) else []
        if fallback is not None and refused:
            arms.append(("fallback", fallback, self.blocks.select(names)))
        return [self._arm(name, method, blocks) for name, method, blocks in arms]

    def _arm(self, name: str, method: Method, blocks: Blocks) -> Arm:
        like = blocks.layout.zeros(like=blocks.like.detach())
        method = method.settled([self._as_seen(b) for b in blocks.members])
        ctx = Context(0, method.damping.at(method.damping.init(), 0), self.backend, self.generator)
        return Arm(name, method, blocks, method.init(like, ctx))

    def _refusal(self, block: Block) -> str:
        """Why the method proper does not treat a block, or nothing."""
        return self.method.preconditioner.refuses(self._as_seen(block)) or ""

    def _as_seen(self, block: Block) -> Block:
        """A block; no layer's any more if its layer cannot be listened to and others could treat it."""
        if self.method.fallback is None or block.name not in self.blocks.untapped:
            return block
        return replace(block, adapter=None, reason="its layer's calls do not explain its gradient")

    # state

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Every state as named tensors (live) and plain values, for a checkpoint."""
        tensors: dict[str, Tensor] = {"generator": self.generator.get_state()}
        plain: dict[str, Any] = {
            "version": STATE_VERSION,
            "steps": self.steps,
            "lr": self.param_groups[0]["lr"],
            "rule_lr": self.param_groups[0]["rule_lr"],
            "untapped": sorted(self.blocks.untapped),
        }
        for arm in self.arms:
            t, p = export(arm.state)
            tensors.update({f"{arm.name}/{path}": value for path, value in t.items()})
            plain.update({f"{arm.name}/{path}": value for path, value in p.items()})
        return tensors, plain

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take on what ``snapshot`` gave, on the same method and model; raises ``CheckpointError``."""
        if plain.get("version") != STATE_VERSION:
            raise CheckpointError(f"state version {plain.get('version')}, expected {STATE_VERSION}")
        if set(plain["untapped"]) != self.blocks.untapped:
            self.blocks.untapped.clear()
            self.blocks.untapped.update(plain["untapped"])
            self.arms = self._arms()
        for arm in self.arms:
            start = f"{arm.name}/"
            restore(
                arm.state,
                {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)},
                {k[len(start) :]: v for k, v in plain.items() if k.startswith(start)},
            )
        self.generator.set_state(tensors["generator"].cpu())
        self.steps = plain["steps"]
        self.param_groups[0].update(lr=plain["lr"], rule_lr=plain["rule_lr"])
        self.ambient.listen(self.needs(self.steps))

    def state_dict(self) -> dict[str, Any]:
        """torch's two keys: each block's tensors under its first parameter, plain values in the group."""
        found: dict[str, Any] = super().state_dict()
        _, found["param_groups"][0]["curvlab"] = self.snapshot()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take on a ``state_dict``; tensors keep this optimizer's dtypes, and are copied, not shared."""
        (group,) = state_dict["param_groups"]
        if "curvlab" not in group:
            raise CheckpointError("this state_dict was not written by a curvlab optimizer")
        tensors: dict[str, Tensor] = {}
        for entry in state_dict["state"].values():
            tensors.update(entry)
        settings = {k: v for k, v in group.items() if k not in ("params", "curvlab")}
        self.restore(tensors, {**group["curvlab"], "lr": settings["lr"], "rule_lr": settings["rule_lr"]})
        self.param_groups[0].update(settings)

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The live state as torch's tools look at it: tensors under the first parameter of their block.

        Made when it is looked at, so that it is never of yesterday and keeps nothing alive.
        """
        tensors, _ = self.snapshot()
        first = {b.name: self.blocks.parameters[b.parameters[0]] for b in self.blocks.members}
        anywhere = next(iter(first.values()))
        shown: defaultdict[Tensor, Any] = defaultdict(dict)
        shown.update({p: {} for p in self.blocks.parameters.values()})
        for path, tensor in tensors.items():
            shown[first.get(_block_of(path, first), anywhere)][path] = tensor
        return shown

    @state.setter
    def state(self, empty: Mapping[Tensor, Any]) -> None:
        """torch's constructor sets one; ours lives in the arms."""


def _block_of(path: str, names: Mapping[str, Any]) -> str:
    """The block that a state path speaks of: behind ``@``, or the longest name among its dotted parts."""
    if "@" in path:
        return path.rpartition("@")[2]
    found = [n for n in names if f".{n}." in path or path.endswith(f".{n}")]
    return max(found, key=len, default="")
