"""Samplers whose samples change size: what the loop counts, logs and evaluates, and what they are told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn

from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.objectives.supervised import objective
from curvlab.parts.damping import Constant
from curvlab.parts.identity import Identity
from curvlab.parts.samplers import SubsampledCurvature
from curvlab.parts.steps import Rate
from curvlab.precision.full import Full
from curvlab.protocols.blocks import Block
from curvlab.protocols.evidence import StepOutcome
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.sampler import Draw, Sampler
from tests.engine.listening import listening
from tests.engine.small_run import CURVED, PLAIN, small_plan
from tests.engine.test_loop import looped

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

SIZE = 72  #: examples of the small task


@dataclass
class Counts:
    """How often it was drawn and told, and what it asked for when."""

    size: int
    drawn: int = 0
    told: int = 0


@dataclass(frozen=True)
class Scripted(Sampler[Counts]):
    """Samples of given sizes, the last one for ever; asks for second opinions in every ``asks``-th step."""

    sizes: tuple[int, ...]
    asks: int = 0
    heard: list[StepOutcome] = field(default_factory=list)

    def init(self, size: int, batch_size: int, seed: int) -> Counts:
        return Counts(size)

    def draw(self, state: Counts) -> Draw:
        n = self.sizes[min(state.drawn, len(self.sizes) - 1)]
        state.drawn += 1
        chosen = torch.arange(n) % state.size
        return Draw(chosen, chosen[: n // 2], chosen)

    def needs(self, state: Counts) -> Needs:
        return Needs(implicit=True) if self.asks and state.told % self.asks == 0 else GRADIENT_ONLY

    def learn(self, state: Counts, what: StepOutcome) -> None:
        state.told += 1
        self.heard.append(what)


def ran(sizes: tuple[int, ...], method: Method = PLAIN, **run: Any) -> tuple[Any, Any]:
    once_an_epoch: dict[str, Any] = {"eval_every": None, "checkpoint_every": None, "log_every": 1, **run}
    return looped(replace(small_plan(method, **once_an_epoch), sampler=Scripted(sizes)))


def test_a_budget_of_epochs_counts_the_gradients_examples_whatever_their_number() -> None:
    diary, training = ran((6, 12, 24, 48, 72), epochs=3)
    assert [r.gradient_size for r in diary.steps] == [6, 12, 24, 48, 72, 72]
    assert [r.examples for r in diary.steps] == [6, 18, 42, 90, 162, 234]
    assert [r.epoch for r in diary.steps] == [pytest.approx(r.examples / SIZE) for r in diary.steps]
    assert training.progress.step == 6
    assert diary.steps[-2].epoch < 3 <= training.epochs


def test_a_step_that_completes_several_epochs_is_evaluated_and_saved_once() -> None:
    diary, _ = ran((10, 3 * SIZE, 10, 2 * SIZE + 5, 20), epochs=6)
    assert [r.examples // SIZE for r in diary.steps] == [0, 3, 3, 5, 5, 5, 6]
    assert [r.step for r in diary.evals] == diary.saved == [2, 4, 7]


def test_steps_of_a_whole_epoch_are_each_evaluated() -> None:
    diary, _ = ran((SIZE,), steps=4)
    assert [r.step for r in diary.evals] == diary.saved == [1, 2, 3, 4]


def test_a_cadence_in_steps_does_not_mind_the_samples_size() -> None:
    diary, _ = ran((10, 3 * SIZE), steps=7, eval_every=3, checkpoint_every=2)
    assert [r.step for r in diary.evals] == [3, 6, 7]
    assert diary.saved == [2, 4, 6, 7]


def test_records_hold_the_sizes_of_both_samples_and_the_examples_of_all_products() -> None:
    diary, _ = ran((16, 32, 64), method=CURVED, steps=3)
    assert [r.gradient_size for r in diary.steps] == [16, 32, 64]
    assert [r.curvature_size for r in diary.steps] == [8, 16, 32]
    for r in diary.steps:
        assert r.products > 0
        assert r.product_examples == r.products * r.curvature_size
    plain, _ = ran((16, 32), steps=2)
    assert [r.curvature_size for r in plain.steps] == [None, None]  # nothing was done with it


def test_what_a_sampler_asks_for_is_evaluated_in_the_steps_it_asks_for_it() -> None:
    for sampler in (Scripted((8,), asks=3), SubsampledCurvature(Scripted((8,), asks=3))):
        looped(replace(small_plan(PLAIN, steps=7), sampler=sampler))
        heard = sampler.base.heard if isinstance(sampler, SubsampledCurvature) else sampler.heard
        assert [what.before.ggn is not None for what in heard] == [k % 3 == 0 for k in range(7)]


@dataclass(frozen=True)
class Picky(Identity):
    """Refuses everything but the first layer."""

    def refuses(self, block: Block) -> str:
        return "" if block.name.startswith("0") else "not the first"


def test_a_sampler_is_told_the_gradient_of_all_blocks_whoever_trains_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    plain = Method(Identity(), Constant(0.0), Rate(0.1))
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.randint(0, 3, (8,))
    nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    square = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    told: list[tuple[float, int]] = []

    def listen(what: StepOutcome) -> None:
        told.append((float(what.before.gradient.dot(what.before.gradient)), what.step.update.flat.numel()))

    method = Method(Picky(), Constant(0.0), Rate(0.1), fallback=plain)
    opt = CurvatureOptimizer(method, model, backend=Full("float64"), samples=listening(listen))
    opt.step(objective(model, nn.CrossEntropyLoss(), x, y))
    assert told == [(pytest.approx(square), 25)]  # the update is that of the method's own block
