"""Trial losses of a step: evaluated once, on the acceptance sample, and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.engine.rates import ParameterRates
from curvlab.engine.trials import Trials
from curvlab.linalg.vectors import BlockVector
from curvlab.model.partition import partition
from curvlab.protocols.evidence import Evaluation


@dataclass
class Sphere:
    """``½ ‖θ − 1‖²`` as an objective that counts what it evaluates."""

    parameters: Mapping[str, Tensor]
    asked: list[str] = field(default_factory=list)

    def start(self, seen: Evaluation) -> Tensor:
        self.asked.append("start")
        return self._value(self.parameters)

    def loss(self, at: Mapping[str, Tensor]) -> Tensor:
        self.asked.append("loss")
        return self._value(at)

    def differentiate(self, at: Mapping[str, Tensor], *, acceptance: bool = False) -> Any:
        self.asked.append("acceptance gradient" if acceptance else "gradient")
        return self._value(at), {name: t - 1.0 for name, t in at.items()}

    @staticmethod
    def _value(at: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([0.5 * (t.detach() - 1.0).square().flatten() for t in at.values()]).sum()


def trials() -> tuple[Trials, Sphere, BlockVector]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    blocks = partition(model, lambda layer: True)
    sphere: Any = Sphere(blocks.parameters)
    g = blocks.pack({n: p.detach() - 1.0 for n, p in blocks.parameters.items()})
    seen = Evaluation(1, torch.zeros(()), g)
    return Trials(update=g, gradient=g, rates=ParameterRates(blocks), objective=sphere, seen=seen), sphere, g


def test_losses_and_gradients_are_those_of_the_objective_at_the_trial() -> None:
    line, _, g = trials()
    square = float(g.dot(g))
    torch.testing.assert_close(line.start(), 0.5 * square)
    torch.testing.assert_close(line.loss_of(g, 0.25), 0.5 * 0.75**2 * square)
    loss, gradient = line.differentiate(g, 0.25)
    torch.testing.assert_close(loss, 0.5 * 0.75**2 * square)
    torch.testing.assert_close(gradient.flat, 0.75 * g.flat)


def test_each_loss_is_evaluated_once_by_a_line_and_its_copies() -> None:
    line, sphere, g = trials()
    other = g * 2.0
    copy = replace(line, update=other)
    for each in (line, copy, line):
        each.start()
        each.loss_of(g, 0.5)
        each.loss_of(other, 0.5)
    assert sphere.asked == ["start", "loss", "loss"]


def test_a_copy_made_first_shares_the_loss_at_the_parameters() -> None:
    line, sphere, _ = trials()
    replace(line, rate=2.0).start()
    line.start()
    assert sphere.asked == ["start"]


def test_equal_updates_that_are_different_vectors_are_different_trials() -> None:
    line, sphere, g = trials()
    line.loss_of(g, 0.5)
    line.loss_of(g.clone(), 0.5)
    assert sphere.asked == ["loss", "loss"]


def test_trial_gradients_say_which_sample_they_are_of() -> None:
    line, sphere, g = trials()
    line.differentiate(g, 0.5)
    line.differentiate(g, 0.5, acceptance=True)
    assert sphere.asked == ["gradient", "acceptance gradient"]


def test_trials_write_no_parameter() -> None:
    line, sphere, g = trials()
    before = {n: p.detach().clone() for n, p in sphere.parameters.items()}
    line.loss_of(g, 0.5)
    line.differentiate(g, 0.5)
    assert all(torch.equal(p, before[n]) for n, p in sphere.parameters.items())
