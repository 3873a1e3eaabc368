"""What a checkpoint holds of a run in flight, and how it is put back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.engine import checkpoint
from curvlab.engine.method import Method
from curvlab.engine.plan import Plan
from curvlab.engine.training import Progress, Training, capture, prepare, restore
from curvlab.errors import CheckpointError
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.damping import Constant
from curvlab.parts.steps import Rate
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Solve, StepOutcome
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.sampler import Draw, Sampler
from tests.engine.small_run import PLAIN, Restless, small_plan


def ready(plan: Plan, seed: int = 0) -> Training:
    torch.manual_seed(seed)
    return prepare(plan, lambda event: None)


def stepped(training: Training, steps: int) -> Training:
    for _ in range(steps):
        draw = training.samples.draw()
        training.optimizer.step(training.workload.objective(draw))
        training.progress.step += 1
    return training


def through_disk(training: Training, folder: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.save(folder, training.progress.step, *capture(training), keep=1))


def test_progress_is_remembered_whole(tmp_path: Path) -> None:
    training = ready(small_plan(PLAIN))
    progress = Progress(
        7, 112, 0.5, 4, metrics={"val_loss": 0.1}, best={"metric": "val_loss"}, events={"x": 2}
    )
    progress.evaluated.set(6, 1)
    progress.saved.set(7, 1)
    training.progress = progress
    other = ready(small_plan(PLAIN))
    restore(other, through_disk(training, tmp_path))
    assert other.progress == progress
    assert Progress.of(dataclasses.asdict(progress)) == progress


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_of_every_dtype_come_back_bit_for_bit_with_tied_parameters_still_tied(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.head(self.b(torch.tanh(self.a(x)))))

    class Task(Restless):
        def model(self) -> nn.Module:
            return Tied().to(dtype)

        def workload(self, model: nn.Module, **where: Any) -> Any:
            return super().workload(model, dtype=dtype, device=torch.device("cpu"))

    a, b = ready(small_plan(PLAIN, task=Task()), 0), ready(small_plan(PLAIN, task=Task()), 1)
    assert not torch.equal(a.model.a.weight, b.model.a.weight)  # type: ignore[union-attr, arg-type]
    restore(b, through_disk(a, tmp_path))
    for (name, x), (_, y) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        assert x.dtype == y.dtype == dtype
        assert torch.equal(x, y), name
    assert b.model.a.weight is b.model.b.weight  # type: ignore[union-attr]


@dataclasses.dataclass
class Hand:
    """A sampler's state that holds tensors and plain values."""

    order: Tensor
    at: int
    weights: list[Tensor]


@dataclasses.dataclass(frozen=True)
class Dealer(Sampler[Hand]):
    """Deals a shuffled deck, and shuffles what is left by what it has dealt."""

    def init(self, size: int, batch_size: int, seed: int) -> Hand:
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        return Hand(order, 0, [torch.zeros(size, dtype=torch.float64)])

    def draw(self, state: Hand) -> Draw:
        chosen = state.order[state.at : state.at + 8].clone()
        state.at = (state.at + 8) % len(state.order)
        state.order.copy_(state.order.roll(int(chosen[0])))
        state.weights[0][chosen] += 1.5
        return Draw(chosen, chosen, chosen)


def test_samplers_may_hold_tensors(tmp_path: Path) -> None:
    plan = dataclasses.replace(small_plan(PLAIN), sampler=Dealer())
    whole, other = stepped(ready(plan), 5), ready(plan, 1)
    restore(other, through_disk(whole, tmp_path))
    for training in (whole, other):
        stepped(training, 4)
    assert other.samples.state.at == whole.samples.state.at
    assert torch.equal(other.samples.state.order, whole.samples.state.order)
    assert torch.equal(other.samples.state.weights[0], whole.samples.state.weights[0])


@dataclasses.dataclass
class Pupil:
    """How often it was told what came of a step, and of how many examples."""

    told: int
    examples: int


@dataclasses.dataclass(frozen=True)
class Learning(Sampler[Pupil]):
    """Draws one example more after every step."""

    def init(self, size: int, batch_size: int, seed: int) -> Pupil:
        return Pupil(0, 0)

    def draw(self, state: Pupil) -> Draw:
        chosen = torch.arange(4 + state.told)
        return Draw(chosen, chosen, chosen)

    def learn(self, state: Pupil, what: StepOutcome) -> None:
        state.told += 1
        state.examples += what.before.examples


def test_samplers_learn_from_every_step_before_and_after_a_restore(tmp_path: Path) -> None:
    plan = dataclasses.replace(small_plan(PLAIN), sampler=Learning())
    training = stepped(ready(plan), 3)
    assert training.samples.state == Pupil(3, 4 + 5 + 6)
    other = ready(plan)
    restore(other, through_disk(training, tmp_path))
    assert stepped(other, 1).samples.state == Pupil(4, 4 + 5 + 6 + 7)


@dataclasses.dataclass
class Turned:
    """A matrix per block, laid out as ``eigh`` returns it once it was computed."""

    Q: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Turning(Preconditioner[Turned]):
    """Replaces its row-major state by column-major tensors, as any part that keeps eigenvectors may."""

    def init(self, like: BlockVector, ctx: Context) -> Turned:
        return Turned({name: torch.eye(block.shape[0]) for name, block in like.items()})

    def apply(self, state: Turned, v: BlockVector, ctx: Context) -> Solve:
        if ctx.step % 3 == 0:
            for name, block in v.items():
                g = block.reshape(block.shape[0], -1)
                state.Q[name] = torch.linalg.eigh(g @ g.mT).eigenvectors
        return Solve(v.clone())


def test_tensors_keep_their_memory_layout_because_products_round_by_it(tmp_path: Path) -> None:
    plan = small_plan(Method(Turning(), Constant(), Rate(0.1)))
    a, b = stepped(ready(plan), 4), ready(plan)
    restore(b, through_disk(a, tmp_path))
    theirs, mine = a.optimizer.snapshot()[0], b.optimizer.snapshot()[0]
    assert any(not t.is_contiguous() for t in theirs.values())
    assert {n: t.stride() for n, t in mine.items()} == {n: t.stride() for n, t in theirs.items()}
    assert all(torch.equal(mine[n], t) for n, t in theirs.items())
    # and back again, into a state that is column-major already
    row_major = through_disk(ready(plan), tmp_path / "first")
    restore(a, row_major)
    assert all(t.is_contiguous() for t in a.optimizer.snapshot()[0].values())


def test_a_checkpoint_of_other_parts_is_refused(tmp_path: Path) -> None:
    saved = through_disk(ready(small_plan(PLAIN)), tmp_path)
    other = ready(small_plan(Method(Turning(), Constant(), Rate(0.1))))
    with pytest.raises(CheckpointError, match="another method"):
        restore(other, saved)
