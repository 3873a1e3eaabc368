"""How long a step takes, as a ratio to a baseline run beside it.

    python asv_benchmarks/step_ratios.py [--rounds 61] [--steps 20] [--json]

One process, one torch thread, process CPU time.  Each round times the baseline and then each
subject for the same number of steps, so that a slower machine slows both; the median of the rounds'
ratios is reported, with the smallest and the largest.  ``kfac`` is timed in whole refresh
cycles.  Network: MLP 784-512-512-512-10, batch 128, float32, random data; 64 batches in turn, and denormal
numbers flushed to zero: one batch learned by heart leaves gradients whose squares are denormal and slow.

| ratio | baseline | bound |
|---|---|---|
| adamw composition | ``torch.optim.AdamW`` in a hand-written loop | 1.15 |
| engine loop | the same optimizer's steps in a hand-written loop | 1.05 |
| kfac, refresh 10 | ``torch.optim.AdamW`` in a hand-written loop | 2.0 |
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import curvlab
from curvlab.protocols.report import Reporter, StepRecord
from curvlab.tasks.mlp import mlp

WIDTHS = (784, 512, 512, 512, 10)
BATCH = 128
BOUNDS = {"adamw composition": 1.15, "engine loop": 1.05, "kfac, refresh 10": 2.0}


def network() -> nn.Module:
    """The same weights every time."""
    torch.manual_seed(0)
    return mlp(WIDTHS, "relu")


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of random images and labels, the same 64 over and over."""
    generator = torch.Generator().manual_seed(1)
    made = [
        (
            torch.rand(BATCH, WIDTHS[0], generator=generator),
            torch.randint(0, WIDTHS[-1], (BATCH,), generator=generator),
        )
        for _ in range(64)
    ]
    return itertools.cycle(made)


def torch_adamw() -> Callable[[], None]:
    """The baseline: a step of torch's own AdamW, CPU defaults."""
    model, data = network(), batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        x, y = next(data)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def ours(method: str, **knobs: object) -> Callable[[], None]:
    """A step of one of our methods, on a new objective each time."""
    model, data = network(), batches()
    optimizer = curvlab.optimizer(method, model, **knobs)
    criterion = nn.CrossEntropyLoss()

    def step() -> None:
        x, y = next(data)
        optimizer.step(curvlab.objective(model, criterion, x, y))

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    """CPU seconds of ``steps`` steps."""
    begun = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - begun


def paired(subject: Callable[[], None], baseline: Callable[[], None], rounds: int, steps: int) -> list[float]:
    """One ratio per round, after a warm-up of both."""
    seconds(baseline, steps)
    seconds(subject, steps)
    ratios = []
    for _ in range(rounds):
        base = seconds(baseline, steps)
        ratios.append(seconds(subject, steps) / base)
    return ratios


@dataclass(frozen=True)
class Clock(Reporter):
    """Reads the CPU clock at every logged step."""

    seen: ClassVar[list[tuple[int, float]]] = []

    def stepped(self, record: StepRecord) -> None:
        """A step was logged."""
        self.seen.append((record.step, time.process_time()))


def engine_loop(rounds: int, steps: int) -> list[float]:
    """A run by the engine against the same method's steps on the same batches in a hand-written loop."""
    from curvlab.parts.samplers import Uniform
    from curvlab.tasks.fashion_mnist import FashionMnist

    task = FashionMnist()
    run = {"steps": steps, "log_every": 10, "eval_every": 10**9, "checkpoint_every": 10**9, "seed": 0}
    config = {
        "task": {"use": "fashion-mnist"},
        "method": {"use": "adamw"},
        "run": run,
        "report": {"use": "step_ratios:Clock"},
    }

    torch.manual_seed(0)
    workload = task.workload(task.model(), dtype=torch.float32, device=torch.device("cpu"))
    optimizer = curvlab.optimizer("adamw", workload.model)
    state = (sampler := Uniform()).init(workload.size, task.batch_size, 0)

    def by_hand() -> float:
        return seconds(lambda: optimizer.step(workload.objective(sampler.draw(state))), steps)

    def by_engine() -> float:
        clock = importlib.import_module("step_ratios").Clock.seen  # this file is __main__, too
        clock.clear()
        with tempfile.TemporaryDirectory() as folder:
            curvlab.train({**config, "run": {**run, "steps": 10 + steps}}, out=Path(folder))
        at = dict(clock)  # from step 10 on: data, evaluation and checkpoint are no part of the loop
        return float(at[10 + steps] - at[10])

    by_hand(), by_engine()
    ratios = []
    for _ in range(rounds):
        base = by_hand()
        ratios.append(by_engine() / base)
    return ratios


def main() -> int:
    """Print the table; exit 1 if a median is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rounds, steps = arguments.rounds, arguments.steps
    base = torch_adamw()
    measured = {
        "adamw composition": paired(ours("adamw", lr=1e-3), base, rounds, steps),
        "kfac, refresh 10": paired(ours("kfac", refresh=10), base, rounds, steps),
        "engine loop": engine_loop(min(rounds, 9), 300),
    }
    rows = {
        name: {
            "median": statistics.median(found),
            "min": min(found),
            "max": max(found),
            "bound": BOUNDS[name],
        }
        for name, found in measured.items()
    }
    if arguments.json:
        json.dump(rows, sys.stdout, indent=2)
    else:
        for name, row in rows.items():
            print(
                f"{name:20} {row['median']:.2f}  ({row['min']:.2f} – {row['max']:.2f})  bound {row['bound']}"
            )
    return int(any(row["median"] > row["bound"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
