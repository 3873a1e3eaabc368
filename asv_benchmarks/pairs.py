"""Timing a subject against a baseline that runs beside it: networks, optimizers, paired rounds.

One process, one torch thread, process CPU time.  Each round times the baseline and then the subject, so
that a slower machine slows both, and the median of the rounds' ratios is what counts.  Methods that do more
in some steps than in others are timed in whole cycles.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import curvlab
from curvlab.tasks.mlp import mlp

WIDTHS = (784, 512, 512, 512, 10)
BATCH = 128


@dataclass(frozen=True)
class Problem:
    """What is trained: the same network and the same batches for every method."""

    model: Callable[[], nn.Module]
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    loss: Callable[[Tensor, Tensor], Tensor]
    criterion: object  #: the loss as ``curvlab.objective`` takes it


@dataclass(frozen=True)
class Subject:
    """An optimizer at work: one step of it, and the bytes that it holds once it has stepped."""

    step: Callable[[], None]
    state_bytes: Callable[[], int]


@dataclass(frozen=True)
class Pair:
    """Two subjects, the steps of each that make one timing, and in how many rounds at most."""

    subject: Subject
    baseline: Subject
    steps: int
    baseline_steps: int
    rounds: int = 10**9


@dataclass(frozen=True)
class Ratio:
    """A subject's time per step over its baseline's: median, smallest and largest of the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, rounds: list[float]) -> Ratio:
        return cls(statistics.median(rounds), min(rounds), max(rounds))

    def __str__(self) -> str:
        digits = 2 if self.median >= 0.1 else 4
        return f"{self.median:.{digits}f}  ({self.least:.{digits}f} – {self.most:.{digits}f})"


def network() -> nn.Module:
    """The same weights every time."""
    torch.manual_seed(0)
    return mlp(WIDTHS, "relu")


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of random images and labels, the same 64 over and over.

    One batch learned by heart would leave gradients whose squares are denormal, and slow.
    """
    generator = torch.Generator().manual_seed(1)
    made = [
        (
            torch.rand(BATCH, WIDTHS[0], generator=generator),
            torch.randint(0, WIDTHS[-1], (BATCH,), generator=generator),
        )
        for _ in range(64)
    ]
    return itertools.cycle(made)


#: MLP 784-512-512-512-10, batch 128, float32, random data
MLP = Problem(network, batches, F.cross_entropy, nn.CrossEntropyLoss())


def hand_written(
    problem: Problem,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    state_bytes: Callable[[Any], int] | None = None,
) -> Subject:
    """The plain loop around an optimizer of torch's kind."""
    model, data, loss = problem.model(), problem.batches(), problem.loss
    optimizer = make(model)

    def step() -> None:
        x, y = next(data)
        optimizer.zero_grad()
        torch.autograd.backward(loss(model(x), y))
        optimizer.step()

    return Subject(step, lambda: (state_bytes or tensor_bytes)(optimizer))


def tensor_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors in a torch optimizer's ``state``."""
    held = [v for state in optimizer.state.values() for v in state.values()]
    return nbytes([v for v in held if isinstance(v, Tensor)])


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors that share no memory."""
    return sum(t.numel() * t.element_size() for t in tensors)


def torch_adamw(problem: Problem = MLP) -> Subject:
    """The baseline: torch's own AdamW, CPU defaults."""
    return hand_written(problem, lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3))


def ours(
    method: str, problem: Problem = MLP, settings: Mapping[str, Any] | None = None, **knobs: Any
) -> Subject:
    """One of our methods, on a new objective each step."""
    model, data = problem.model(), problem.batches()
    optimizer = curvlab.optimizer(method, model, settings=settings, **knobs)

    def step() -> None:
        x, y = next(data)
        optimizer.step(curvlab.objective(model, problem.criterion, x, y))

    return Subject(step, optimizer.state_bytes)


def quiet() -> None:
    """One thread, and denormal numbers flushed to zero."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def seconds(step: Callable[[], object], steps: int) -> float:
    """CPU seconds of ``steps`` steps."""
    begun = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - begun


def interleaved(pairs: Mapping[str, Pair], rounds: int) -> dict[str, list[float]]:
    """Per pair one ratio of times per step for each round; every round runs every pair, after a warm-up."""

    def once(pair: Pair) -> float:
        base = seconds(pair.baseline.step, pair.baseline_steps) / pair.baseline_steps
        return seconds(pair.subject.step, pair.steps) / pair.steps / base

    for pair in pairs.values():
        once(pair)
    found: dict[str, list[float]] = {name: [] for name in pairs}
    for k in range(rounds):
        for name, pair in pairs.items():
            if k < pair.rounds:
                found[name].append(once(pair))
    return found


def paired(subject: Subject, baseline: Subject, rounds: int, steps: int) -> list[float]:
    """One ratio per round of two subjects alone."""
    return interleaved({"": Pair(subject, baseline, steps, steps)}, rounds)[""]
