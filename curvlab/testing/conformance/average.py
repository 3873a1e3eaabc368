"""The suite of averages of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvlab.engine.state import tensors_of
from curvlab.protocols.average import Average, Taken
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.exercised import Found, Stateful
from curvlab.testing.problems import normal

SHAPES: Mapping[str, tuple[int, ...]] = {"0.weight": (3, 4), "0.bias": (3,), "scale": ()}

#: rate of every step, and the number of steps that are the whole budget
RATE, STEPS = 0.1, 8


@dataclass
class Run:
    """The parameters, and the state of the average beside them."""

    theta: dict[str, Tensor]
    state: Any


class AverageConformance(Stateful):
    """Beside parameters that take steps: what it gives, what it changes, what it remembers."""

    kind = "average"
    part: Average[Any]

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def begin(self, dtype: torch.dtype = torch.float64) -> Run:
        theta = {n: normal(*shape, seed=k).to(dtype) for k, (n, shape) in enumerate(SHAPES.items())}
        return Run(theta, self.part.init(theta))

    def state_of(self, run: Run) -> Any:
        return run.state

    def follow(self, run: Run, other: Run) -> None:
        for name, t in other.theta.items():
            run.theta[name].copy_(t)

    def advance(self, run: Run, step: int, length: float = 1.0) -> Found:
        for k, t in enumerate(run.theta.values()):
            t.add_(normal(*t.shape, seed=100 * (step + 1) + k).to(t.dtype), alpha=RATE * length)
        self.part.stepped(run.state, run.theta, Taken(step, RATE, min(step / STEPS, 1.0)))
        found = {f"weights {n}": t.clone() for n, t in self.weights(run).items()}
        return {**found, **{f"parameter {n}": t.clone() for n, t in run.theta.items()}}

    def advanced(self, dtype: torch.dtype = torch.float64) -> Run:
        """A run at the end of its budget, so that whatever begins late has begun."""
        run = self.begin(dtype)
        for step in range(STEPS + 2):
            self.advance(run, step)
        return run

    def weights(self, run: Run) -> Mapping[str, Tensor]:
        """The averaged weights."""
        return self.part.weights(run.state, run.theta)

    @check()
    def check_weights(self) -> None:
        """The averaged weights are finite, and have the names and shapes of the parameters."""
        for run in (self.begin(), self.advanced()):
            found = self.weights(run)
            assert set(found) == set(run.theta), f"{self.name}.weights gives {sorted(found)}"
            for name, t in found.items():
                shape = tuple(run.theta[name].shape)
                assert tuple(t.shape) == shape, (
                    f"{self.name}.weights: {name} is {tuple(t.shape)}, not {shape}"
                )
                assert bool(torch.isfinite(t).all()), f"{self.name}.weights: {name} is not finite"

    @check()
    def check_at_rest(self) -> None:
        """The average of parameters that do not move is these parameters."""
        run = self.begin()
        first = {n: t.clone() for n, t in run.theta.items()}
        for step in range(STEPS + 2):
            self.advance(run, step, length=0.0)
        for name, t in self.weights(run).items():
            assert torch.allclose(t.to(first[name].dtype), first[name], rtol=1e-12, atol=1e-14), (
                f"{self.name}: {name} has not moved, and its average is another"
            )

    @check()
    def check_moves(self) -> None:
        """Only one that ``moves`` writes parameters."""
        run = self.begin()
        for step in range(STEPS + 2):
            plain = {n: t.clone() for n, t in run.theta.items()}
            for k, t in enumerate(plain.values()):
                t.add_(normal(*t.shape, seed=100 * (step + 1) + k), alpha=RATE)
            self.advance(run, step)
            same = all(torch.equal(t, plain[n]) for n, t in run.theta.items())
            assert same or self.part.moves, f"{self.name} writes parameters; set moves = True"

    @check()
    def check_reads(self) -> None:
        """``weights`` changes neither the state nor the parameters."""
        run = self.advanced()
        held = [t.clone() for t in (*tensors_of(run.state), *run.theta.values())]
        self.weights(run)
        after = (*tensors_of(run.state), *run.theta.values())
        same = all(torch.equal(a, b) for a, b in zip(held, after, strict=True))
        assert same, f"{self.name}.weights changes its state or the parameters"

    @check()
    def check_copies(self) -> None:
        """What it keeps of the parameters it copies."""
        run = self.begin()
        held = [t.clone() for t in tensors_of(run.state)]
        kept = {n: t.clone() for n, t in run.theta.items()}
        for t in run.theta.values():
            t.fill_(7.0)
        same = all(torch.equal(a, b) for a, b in zip(held, tensors_of(run.state), strict=True))
        assert same, f"{self.name}.init keeps parameters themselves; copy them"
        for name, t in run.theta.items():
            t.copy_(kept[name])
        self.advance(run, 0)
        held = [t.clone() for t in tensors_of(run.state)]
        for t in run.theta.values():
            t.fill_(7.0)
        same = all(torch.equal(a, b) for a, b in zip(held, tensors_of(run.state), strict=True))
        assert same, f"{self.name}.stepped keeps parameters themselves; copy them"

    @check()
    def check_width(self) -> None:
        """With parameters in bfloat16, no tensor of the state is narrower than float32."""
        run = self.advanced(torch.bfloat16)
        narrow = {t.dtype for t in tensors_of(run.state) if t.is_floating_point() and t.element_size() < 4}
        assert not narrow, f"{self.name} keeps {', '.join(map(str, narrow))}, in which small changes are lost"
