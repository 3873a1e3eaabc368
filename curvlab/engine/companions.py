"""The callbacks of a run at work, each with its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.engine.arms import Arm
from curvlab.engine.method import Method
from curvlab.engine.state import export, restore
from curvlab.errors import CheckpointError, ConfigError, Fault
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.callback import Callback
from curvlab.protocols.pieces import whole
from curvlab.protocols.report import Event


@dataclass(frozen=True)
class Companions:
    """Callbacks by the name that the configuration gives them, and their states."""

    callbacks: Mapping[str, Callback[Any]]
    states: Mapping[str, Any]

    @classmethod
    def of(cls, callbacks: Mapping[str, Callback[Any]], model: nn.Module, method: Method) -> Companions:
        """From fresh states; raises ``ConfigError`` for callbacks that this method cannot follow."""
        for name, callback in callbacks.items():
            _require_usable(name, callback, method)
        return cls(callbacks, {name: callback.init(model) for name, callback in callbacks.items()})

    @property
    def penalizing(self) -> bool:
        """Whether any adds a term to the loss."""
        return any(callback.penalizes for callback in self.callbacks.values())

    @property
    def constraining(self) -> bool:
        """Whether any restricts gradients."""
        return any(callback.constrains for callback in self.callbacks.values())

    def tangent(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gradients that callbacks restrict, after all of them in their order; others are left out."""
        found: dict[str, Tensor] = {}
        for name, callback in self.callbacks.items():
            if callback.constrains:
                found.update(callback.tangent(self.states[name], {**gradient, **found}))
        return found

    def penalty(self, model: nn.Module, at: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The sum of all terms at ``at``; zero if there are none."""
        terms = [c.penalty(self.states[n], model, at) for n, c in self.callbacks.items() if c.penalizes]
        return torch.stack(terms).sum() if terms else next(iter(at.values())).new_zeros(())

    def ridge(self) -> dict[str, float]:
        """The curvature of all terms, by parameter."""
        found: dict[str, float] = {}
        for name, callback in self.callbacks.items():
            for parameter, value in callback.ridge(self.states[name]).items():
                found[parameter] = found.get(parameter, 0.0) + value
        return found

    def block_ridge(self, blocks: Blocks) -> dict[str, float]:
        """The same by block: the largest of its parameters, so a bias column is damped as its matrix is."""
        ridge = self.ridge()
        if not ridge:
            return {}
        found = {b.name: max(ridge.get(whole(p), 0.0) for p in b.parameters) for b in blocks.members}
        return {name: value for name, value in found.items() if value}

    def rates(self) -> dict[str, float]:
        """What the rate of each parameter is multiplied by; 1 where it is not named."""
        found: dict[str, float] = {}
        for name, callback in self.callbacks.items():
            if callback.scales_rates:
                for parameter, value in callback.rates(self.states[name]).items():
                    found[parameter] = found.get(parameter, 1.0) * value
        return found

    @torch.no_grad()
    def stepped(self, model: nn.Module, loss: float) -> None:
        """A step was taken."""
        for name, callback in self.callbacks.items():
            callback.stepped(self.states[name], model, loss)

    @torch.no_grad()
    def epoch_ended(self, model: nn.Module, epoch: int, step: int) -> list[Event]:
        """An epoch has ended; what there is to say of it."""
        said = []
        for name, callback in self.callbacks.items():
            for notice in callback.epoch_ended(self.states[name], model, epoch):
                said.append(
                    Event(notice.name, step, {"callback": name, "epoch": epoch, **dict(notice.detail)})
                )
        return said

    def stops(self) -> str | None:
        """Why the run should end now, by the first callback that says so."""
        for name, callback in self.callbacks.items():
            reason = callback.stops(self.states[name])
            if reason is not None:
                return f"{name}: {reason}"
        return None

    def report(self, arms: Sequence[Arm], emit: Callable[[Event], None]) -> None:
        """Say for every arm how the curvature of penalties reaches it (event ``penalty-curvature``)."""
        for arm in arms:
            ridge = self.block_ridge(arm.blocks)
            if ridge:
                part = arm.method.preconditioner
                by = "products" if part.needs(0).implicit else "damping" if part.ridged else "gradient alone"
                detail = {"arm": arm.name, "ridge": max(ridge.values()), "enters": by}
                emit(Event("penalty-curvature", 0, detail))

    # as data

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Every state as named tensors (live) and plain values."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for name, state in self.states.items():
            own, values = export(state)
            tensors.update({f"{name}/{path}": tensor for path, tensor in own.items()})
            plain[name] = values
        return tensors, plain

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take on what ``snapshot`` gave; raises ``CheckpointError`` if its callbacks are others."""
        if set(plain) != set(self.states):
            raise CheckpointError(
                f"the checkpoint has states of the callbacks {sorted(plain) or 'none'}, expected"
                f" {sorted(self.states) or 'none'}; resume with the run's own resolved.toml"
            )
        for name, state in self.states.items():
            start = f"{name}/"
            own = {k[len(start) :]: t for k, t in tensors.items() if k.startswith(start)}
            restore(state, own, plain[name])


def _require_usable(name: str, callback: Callback[Any], method: Method) -> None:
    """Raise ``ConfigError`` where a step rule would ignore what the callback does."""
    rule, part = type(method.step).__name__, type(callback).__name__
    if callback.scales_rates and (method.step.chooses or method.step.follows):
        raise ConfigError(
            Fault(
                f"{part} scales rates of parameters, and {rule} chooses among solutions of all parameters",
                path=f"callbacks.{name}",
                hint='use a method whose step is a rate, such as kfac, or step = { use = "armijo" }',
            )
        )
    if (callback.penalizes or callback.constrains) and method.step.follows:
        does = "adds a penalty" if callback.penalizes else "restricts gradients"
        raise ConfigError(
            Fault(
                f"{part} {does}, and {rule} follows solutions of the loss's own residuals",
                path=f"callbacks.{name}",
                hint="use another step rule, or another method, such as kfac",
            )
        )
