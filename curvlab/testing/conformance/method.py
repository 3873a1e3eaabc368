"""The suite of methods: compositions of parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import Diverged
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.needs import Needs
from curvlab.protocols.report import Event
from curvlab.testing.conformance.bench import CLASSES, EXAMPLES, INPUTS, network
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.exercised import Exercised, Found
from curvlab.testing.files import through_torch_save
from curvlab.testing.problems import labels, normal
from curvlab.testing.reference import Lapack

STEPS = 20


@dataclass
class Training:
    """A network, its optimizer, and what the latter said."""

    model: nn.Module
    optimizer: CurvatureOptimizer
    events: list[Event]

    def step(self, batch: int, *, poison: float = 1.0) -> float:
        """One step; its loss."""
        loss = self.optimizer.step(self.objective(batch, poison))
        assert loss is not None
        return float(loss)

    def objective(self, batch: int, poison: float = 1.0) -> SupervisedObjective:
        """The cross-entropy of a batch, its inputs times ``poison``."""
        x = normal(4 * EXAMPLES, INPUTS, seed=100 + batch) * poison
        return objective(
            self.model, nn.CrossEntropyLoss(), x, labels(4 * EXAMPLES, classes=CLASSES, seed=200 + batch)
        )

    @property
    def theta(self) -> Tensor:
        """Every parameter."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


class MethodConformance(Exercised):
    """A method trains a network of two linear layers and a norm."""

    kind = "method"
    part: Method

    @classmethod
    def protocol(cls) -> type:
        return Method

    def training(self, seed: int = 0) -> Training:
        """From the beginning, in float64."""
        model, events = network(), list[Event]()
        return Training(
            model,
            CurvatureOptimizer(self.part, model, backend=Lapack(), seed=seed, on_event=events.append),
            events,
        )

    def exercise(self) -> Found:
        run = self.training()
        return {f"loss of step {k}": run.step(k) for k in range(4)} | {"θ": run.theta}

    @check()
    def check_coverage(self) -> None:
        """Every parameter is trained, by the method or by its fallback, and then for a reason."""
        rows = self.training().optimizer.coverage()
        idle = [row.parameter for row in rows if row.treatment == "frozen"]
        assert not idle, f"no part of the method trains {', '.join(idle)}"
        mute = [row.parameter for row in rows if row.treatment == "fallback" and not row.reason]
        assert not mute, f"the method gives no reason why the fallback trains {', '.join(mute)}"

    @check()
    def check_trains(self) -> None:
        """On one batch, twenty steps lower the loss, and every parameter moves."""
        run = self.training()
        start = run.theta
        losses = [run.step(0) for _ in range(STEPS)]
        end = float(run.objective(0).loss())
        assert all(map(math.isfinite, losses)), f"a loss is not finite: {losses}"
        assert end < losses[0], f"the loss goes from {losses[0]:.6g} to {end:.6g}"
        still = [
            n
            for n, p in run.model.named_parameters()
            if torch.equal(p, dict(network().named_parameters())[n])
        ]
        assert not still, f"{', '.join(still)} did not change; ‖Δθ‖ = {float((run.theta - start).norm()):.3g}"

    @check()
    def check_resume(self) -> None:
        """Saved and loaded in the middle, training goes on as if nothing had been, to the last bit."""
        run = self.training()
        for k in range(5):
            run.step(k)
        twin = self.training(seed=9)
        with torch.no_grad():
            for p, q in zip(twin.model.parameters(), run.model.parameters(), strict=True):
                p.copy_(q)
        tensors, plain = run.optimizer.snapshot()
        twin.optimizer.restore(through_torch_save(tensors), dict(plain))
        for k in range(5, 9):
            run.step(k), twin.step(k)
            off = float((run.theta - twin.theta).abs().max())
            assert torch.equal(run.theta, twin.theta), f"step {k}: parameters differ by {off:.3g}"

    @check()
    def check_failure(self) -> None:
        """Inputs that are NaN, or enormous: ``Diverged``, and θ as before the step; or θ that is finite."""
        for poison in (math.nan, 1e200):
            run = self.training()
            for k in range(2):
                run.step(k)
            before = run.theta
            try:
                run.step(2, poison=poison)
            except Diverged:
                assert torch.equal(run.theta, before), "a step that failed changed parameters"
                continue
            assert math.isfinite(poison), "a step on NaNs does not raise Diverged"
            finite = bool(torch.isfinite(run.theta).all())
            assert finite, f"a step on inputs of the size of {poison:g} leaves parameters that are not finite"

    @check()
    def check_events(self) -> None:
        """Events have a fixed word for a name and plain values for details."""
        run = self.training()
        for k in range(6):
            run.step(k, poison=1.0 if k % 2 else 30.0)
        for event in run.events:
            assert isinstance(event, Event), f"an event is a {type(event).__name__}"
            assert event.name and event.name == event.name.lower(), f"event name {event.name!r}"  # noqa: PT018
            plain = (int, float, bool, str, type(None))
            wrong = {k: v for k, v in event.detail.items() if not isinstance(v, plain)}
            assert not wrong, f'event "{event.name}" holds {wrong}, which JSON cannot represent'

    @check()
    def check_needs(self) -> None:
        """What a step needs depends on its number alone, and no step makes more products than it said."""
        run = self.training()
        for k in range(4):
            needs = run.optimizer.needs(k)
            assert isinstance(needs, Needs), f"needs({k}) must return Needs, not {needs!r}"
            assert needs == run.optimizer.needs(k), f"needs({k}) differs between two calls"
            run.step(k)
            facts: Any = run.optimizer.last
            made = facts.products or 0
            assert made <= needs.products, (
                f"step {k} makes {made} products, and needs() declares {needs.products}"
            )
