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
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from pairs import Ratio, ours, paired, quiet, seconds, torch_adamw

import curvlab
from curvlab.protocols.report import Reporter, StepRecord

BOUNDS = {"adamw composition": 1.15, "engine loop": 1.05, "kfac, refresh 10": 2.0}


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
    quiet()
    rounds, steps = arguments.rounds, arguments.steps
    base = torch_adamw()
    measured = {
        "adamw composition": paired(ours("adamw", lr=1e-3), base, rounds, steps),
        "kfac, refresh 10": paired(ours("kfac", refresh=10), base, rounds, steps),
        "engine loop": engine_loop(min(rounds, 9), 300),
    }
    rows = {name: Ratio.of(found) for name, found in measured.items()}
    if arguments.json:
        table = {
            name: {"median": row.median, "min": row.least, "max": row.most, "bound": BOUNDS[name]}
            for name, row in rows.items()
        }
        json.dump(table, sys.stdout, indent=2)
    else:
        for name, row in rows.items():
            print(f"{name:20} {row}  bound {BOUNDS[name]}")
    return int(any(row.median > BOUNDS[name] for name, row in rows.items()))


if __name__ == "__main__":
    sys.exit(main())
