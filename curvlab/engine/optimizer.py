"""A method as a ``torch.optim.Optimizer``: what torch's tools need of one."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.engine import saved
from curvlab.engine.companions import Companions
from curvlab.engine.groups import resolve
from curvlab.engine.live import live
from curvlab.engine.method import Method
from curvlab.engine.method_on_model import MethodOnModel
from curvlab.engine.scaling import startable
from curvlab.engine.settings import PEAK
from curvlab.engine.trained import Trained
from curvlab.errors import ConfigError, Fault
from curvlab.model.readers.shipped import SHIPPED
from curvlab.objectives.distributed import require_alike
from curvlab.objectives.examples import Declared
from curvlab.objectives.ranks import Ranks
from curvlab.protocols.average import Average
from curvlab.protocols.backend import Backend
from curvlab.protocols.objective import Objective
from curvlab.protocols.reader import LayerReader
from curvlab.protocols.report import Event
from curvlab.protocols.sampler import SampleStream


class CurvatureOptimizer(MethodOnModel, torch.optim.Optimizer):
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
        self.given = method, seed, reduction, examples, strict, readers, placement, average
        trained = Trained(model, method.preconditioner, readers)
        ranks = require_alike(model, ranks, trained.shards)
        started = startable(method)
        homes = self._groups(method, started, groups, trained)
        MethodOnModel.__init__(
            self,
            started,
            trained,
            homes,
            backend=backend,
            seed=seed,
            reduction=reduction,
            name=name,
            on_event=on_event,
            ranks=ranks,
            examples=examples,
            strict=strict,
            samples=samples,
            placement=placement,
            companions=companions,
            average=average,
        )

    def _groups(
        self, method: Method, started: Method, groups: Sequence[Mapping[str, Any]], trained: Trained
    ) -> dict[str, int]:
        """Hand torch its groups; the index of each parameter's group."""
        named, rate = dict(trained.model.named_parameters()), started.step.rate(0)
        defaults = live(method)
        if rate == 0:  # a schedule that begins with zero: the group's rate multiplies it
            rate = defaults["lr"] = 1.0
        resolved = resolve(trained.model, groups, method)
        listed = [
            {"params": [named[n] for n in g.names if n not in trained.frozen], **g.settings} for g in resolved
        ]
        # "initial_lr" is torch's schedulers' own: the rate that "lr" is a multiple of goes by another name
        own = started is not method and started.fallback is method.fallback
        zero = {PEAK: 0.0} if own else {}
        torch.optim.Optimizer.__init__(self, listed, {**defaults, "rule_lr": rate, **zero})
        return {n: k for k, g in enumerate(resolved) for n in g.names}

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
        self._prepare()
        source = self._source(closure)
        self._take(source)
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
