"""The suite of callbacks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError
from curvlab.protocols.callback import Callback, Notice
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.exercised import Found, Stateful
from curvlab.testing.problems import normal

#: steps of an epoch of the suite
STEPS_PER_EPOCH = 2

#: how far a second difference may be from a ridge, in units of it: what is cubic in the step remains
RIDGE_TOLERANCE = 1e-5


@dataclass
class Run:
    """A model, and the state of the callback beside it."""

    model: nn.Module
    state: Any


class CallbackConformance(Stateful):
    """Around a small network: what it adds, what it scales, what it may change, what it remembers.

    ``model`` is that network; override it for a callback that works on layers of another kind.  A callback
    that refuses it with a ``ConfigError`` is checked no further.
    """

    kind = "callback"
    part: Callback[Any]

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def model(self) -> nn.Module:
        """Two convolutions and two linear layers, in float64, always the same."""
        layers = [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, padding=1), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        for k, p in enumerate(model.parameters()):
            p.data.copy_(normal(*p.shape, seed=k) * 0.3)
        return model

    def begin(self) -> Run:
        with torch.random.fork_rng(devices=[]):  # torch's own initialization draws
            model = self.model()
        try:
            return Run(model, self.part.init(model))
        except ConfigError as error:
            raise Skipped(f"it refuses the suite's model: {error}") from error

    def state_of(self, run: Run) -> Any:
        return run.state

    def follow(self, run: Run, other: Run) -> None:
        run.model.load_state_dict(other.model.state_dict())

    def advance(self, run: Run, step: int) -> Found:
        for k, p in enumerate(run.model.parameters()):
            p.data.add_(normal(*p.shape, seed=100 * step + k), alpha=0.01)
        with torch.no_grad():
            self.part.stepped(run.state, run.model, 1.0 / (step + 1))
            if (step + 1) % STEPS_PER_EPOCH == 0:
                self.part.epoch_ended(run.state, run.model, (step + 1) // STEPS_PER_EPOCH)
        found: dict[str, Any] = {n: p.detach() for n, p in run.model.named_parameters()}
        found.update({f"rate of {n}": v for n, v in self.part.rates(run.state).items()})
        found.update({f"ridge of {n}": v for n, v in self.part.ridge(run.state).items()})
        if self.part.penalizes:
            found["the penalty"] = self._penalty(run, at(run.model)).detach()
        return {**found, "why it stops": self.part.stops(run.state)}

    def advanced(self) -> Run:
        """A run after an epoch, so that whatever begins at its end has begun."""
        run = self.begin()
        for step in range(STEPS_PER_EPOCH):
            self.advance(run, step)
        return run

    def _penalty(self, run: Run, where: Mapping[str, Tensor]) -> Tensor:
        return self.part.penalty(run.state, run.model, where)

    @check()
    def check_penalty(self) -> None:
        """A penalty is a finite number, and its gradient is that in ``at``, by finite differences."""
        run = self.advanced()
        if not self.part.penalizes:
            return
        leaves = {n: t.clone().requires_grad_() for n, t in at(run.model).items()}
        value = self._penalty(run, leaves)
        assert isinstance(value, Tensor) and value.dim() == 0, f"{self.name}.penalty gives {value!r}"  # noqa: PT018
        assert bool(torch.isfinite(value)), f"{self.name}.penalty is {float(value)}"
        parts: Sequence[Tensor | None] = [None] * len(leaves)
        if value.requires_grad:
            parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        way = {n: normal(*t.shape, seed=k) for k, (n, t) in enumerate(leaves.items())}
        slope = sum(float((g * way[n]).sum()) for n, g in zip(leaves, parts, strict=True) if g is not None)
        h = 1e-6
        there, back = (self._penalty(run, moved(run.model, way, s)) for s in (h, -h))
        seen = float(there - back) / (2 * h)
        size = max(abs(slope), abs(seen), float(value.detach().abs()), 1e-3)
        assert abs(slope - seen) <= 1e-5 * size, (
            f"{self.name}.penalty: slope {slope:.6g} along a direction, by finite differences {seen:.6g}"
        )

    @check()
    def check_ridge(self) -> None:
        """A ridge ρ of a parameter is the penalty's second derivative there: ρ along every direction."""
        run = self.advanced()
        named = dict(run.model.named_parameters())
        for name, rho in self.part.ridge(run.state).items():
            assert name in named, f"{self.name}.ridge names {name}, which is no parameter of the model"
            assert math.isfinite(rho) and rho >= 0, f"{self.name}.ridge of {name} is {rho}"  # noqa: PT018
            assert self.part.penalizes, f"{self.name} has a ridge and no penalty"
            v = normal(*named[name].shape, seed=1)
            h = 1e-3
            there, here, back = (self._penalty(run, moved(run.model, {name: v}, s)) for s in (h, 0.0, -h))
            seen = float(there - 2 * here + back) / h**2 / float(v.square().sum())
            assert abs(seen - rho) <= RIDGE_TOLERANCE * max(rho, 1e-3), (
                f"{self.name}.ridge of {name} is {rho:g}; the penalty's second derivative is {seen:g}"
            )

    @check()
    def check_tangent(self) -> None:
        """``tangent`` is an orthogonal projection: linear, the same applied twice, and self-adjoint."""
        run = self.advanced()
        u, v = (
            {n: normal(*t.shape, seed=k + s) for k, (n, t) in enumerate(at(run.model).items())}
            for s in (0, 99)
        )

        def P(g: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {**g, **self.part.tangent(run.state, g)}

        Pu, Pv = P(u), P(v)
        assert Pu.keys() == u.keys(), f"{self.name}.tangent names what is no parameter of the model"
        restricts = any(not torch.equal(Pu[n], u[n]) for n in u)
        assert not restricts or self.part.constrains, (
            f"{self.name} restricts gradients; set constrains = True"
        )
        both = P({n: 2.0 * u[n] - v[n] for n in u})
        PPu = P(Pu)
        for n in u:
            size = 1e-10 * float(u[n].norm() + v[n].norm())
            assert Pu[n].shape == u[n].shape, f"{self.name}.tangent changes the shape of {n}"
            off = float((both[n] - 2.0 * Pu[n] + Pv[n]).norm())
            assert off <= size, f"{self.name}.tangent of {n} is not linear: off by {off:.2e}"
            off = float((PPu[n] - Pu[n]).norm())
            assert off <= size, f"{self.name}.tangent of {n} changes what it gave: by {off:.2e}"
        left, right = (sum(float((a[n] * b[n]).sum()) for n in u) for a, b in ((Pu, v), (u, Pv)))
        scale = sum(float(u[n].norm() * v[n].norm()) for n in u)
        assert abs(left - right) <= 1e-10 * scale, f"{self.name}.tangent is no orthogonal projection"

    @check()
    def check_rates(self) -> None:
        """Rates are of parameters that there are, positive and finite; only of one that ``scales_rates``."""
        run = self.advanced()
        rates, named = self.part.rates(run.state), dict(run.model.named_parameters())
        assert not rates or self.part.scales_rates, f"{self.name} gives rates; set scales_rates = True"
        for name, rate in rates.items():
            assert name in named, f"{self.name}.rates names {name}, which is no parameter of the model"
            good = isinstance(rate, float) and math.isfinite(rate) and rate > 0
            assert good, f"{self.name}.rates gives {rate!r} for {name}"

    @check()
    def check_shapes(self) -> None:
        """Names, shapes and dtypes of parameters and buffers stay what they are."""
        with torch.random.fork_rng(devices=[]):
            before = facts(self.model())
        after = facts(self.advanced().model)
        wrong = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
        assert not wrong, f"{self.name} changes name, shape or dtype of {', '.join(wrong)}"

    @check()
    def check_notices(self) -> None:
        """What an epoch's end returns are ``Notice``s that JSON can hold."""
        run = self.begin()
        self.advance(run, 0)
        with torch.no_grad():
            said = self.part.epoch_ended(run.state, run.model, 1)
        assert isinstance(said, tuple), f"{self.name}.epoch_ended must return a tuple, not {said!r}"
        for notice in said:
            assert isinstance(notice, Notice), f"{self.name}.epoch_ended returns {notice!r}"
            try:
                json.dumps(dict(notice.detail))
            except TypeError as error:
                raise AssertionError(
                    f"{self.name}: the notice {notice.name} cannot be written: {error}"
                ) from error

    @check()
    def check_stops(self) -> None:
        """A run does not stop before its first step; a reason is words."""
        why = self.part.stops(self.begin().state)
        assert why is None, f"{self.name} stops a run before its first step: {why!r}"
        why = self.part.stops(self.advanced().state)
        assert why is None or (isinstance(why, str) and why), f"{self.name}.stops gives {why!r}"


def at(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters, detached."""
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def moved(model: nn.Module, way: Mapping[str, Tensor], h: float) -> dict[str, Tensor]:
    """The parameters plus h times ``way``."""
    return {n: t + h * way[n] if n in way else t for n, t in at(model).items()}


def facts(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes by name."""
    return {n: (tuple(t.shape), t.dtype) for n, t in model.state_dict().items()}
