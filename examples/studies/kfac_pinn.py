"""Step rules and damping of ``kfac-pinn``: the error that each comes to in a given time.

    python examples/studies/kfac_pinn.py [--seconds 30] [--runs runs/kfac-pinn]

All points in every step, float64, one thread, CPU seconds.  Prints a Markdown table for
``docs/studies/kfac-pinn.md``.  Runs that exist in ``--runs`` are not repeated.  With the defaults, half an
hour of one core.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from training import Ledger

import curvlab
from curvlab.errors import Diverged
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Task
from curvlab_pinn.tasks.heat import Heat
from curvlab_pinn.tasks.poisson import Poisson

SEEDS = (0, 1, 2)

TASKS: dict[str, Task] = {
    "Poisson, 2-64-1": Poisson(),
    "Poisson, 5-64-1": Poisson(dimension=5, solution="cosine-sum", hidden=(64,), interior=1500, boundary=500),
    "heat, 5-64-64-1": Heat(dimension=5, hidden=(64, 64), interior=1500, boundary=500),
}

NEAR = {"use": "grid", "lr": 1.0, "shrink": 0.5, "count": 31, "near": True}
MODEL = {"use": "quadratic-model", "tries": 31}
BARE = {"use": "quadratic-model", "tries": 31, "damped": False}
STAR = {"use": "quadratic-model"}


def constant(value: float) -> dict[str, Any]:
    """λ that stays as it is."""
    return {"use": "constant", "value": value}


def ratio(initial: float, factor: float) -> dict[str, Any]:
    """λ that follows the reduction ratio."""
    return {"use": "levenberg-marquardt", "initial": initial, "factor": factor, "minimum": 1e-14}


#: by what the table says: step rule and damping
VARIANTS: dict[str, dict[str, Any]] = {
    "grid, near; λ = 1e-8": {"step": NEAR, "damping": constant(1e-8)},
    "model without λ, tries; λ = 1e-8": {"step": BARE, "damping": constant(1e-8)},
    "model without λ, tries; λ by ratio from 1e-6": {"step": BARE, "damping": ratio(1e-6, 2.0)},
    "grid, near; λ by ratio from 1e-6": {"step": NEAR, "damping": ratio(1e-6, 2.0)},
    "model, tries; λ = 1e-6": {"step": MODEL, "damping": constant(1e-6)},
    "model, tries; λ by ratio from 1e-6": {"step": MODEL, "damping": ratio(1e-6, 2.0)},
    "model (KFAC*); λ = 1e-4": {"step": STAR, "damping": constant(1e-4)},
}


def run(task: Task, settings: Mapping[str, Any], seed: int, seconds: float) -> dict[str, Any]:
    """The relative error after so many CPU seconds, and the steps; a seed is a start of the network."""
    torch.manual_seed(seed)
    workload = task.workload(task.model(), dtype=torch.float64, device=torch.device("cpu"))
    optimizer = curvlab.optimizer(
        "kfac-pinn", workload.model, seed=seed, settings={**settings, "on_update": []}
    )
    everything = torch.arange(workload.size)
    draw = Draw(everything, everything, everything)
    begun, steps, failure = time.process_time(), 0, ""
    try:
        while time.process_time() - begun < seconds:
            optimizer.step(workload.objective(draw))
            steps += 1
    except Diverged as error:
        failure = str(error)
    return {"error": workload.metrics()["val_l2"], "steps": steps, "failure": failure}


def table(found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
    """Median error and steps of every variant on every task."""
    lines = ["| step; damping | " + " | ".join(TASKS) + " |", "|---" + "|--:" * len(TASKS) + "|"]
    for variant in VARIANTS:
        cells = []
        for task in TASKS:
            runs = found.get((variant, task), ())
            if not runs:
                cells.append("–")
                continue
            errors = [r["error"] for r in runs]
            steps = statistics.median(r["steps"] for r in runs)
            cells.append(
                f"{statistics.median(errors):.1e} ({min(errors):.1e} – {max(errors):.1e}; {steps:,.0f})"
            )
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("runs/kfac-pinn"))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    ledger = Ledger(asked.runs)
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for seed, variant, task in itertools.product(asked.seeds, asked.only, asked.tasks):
        settings = VARIANTS[variant]
        key = {"task": task, "settings": settings, "seed": seed, "seconds": asked.seconds}
        one = ledger.get(key, partial(run, TASKS[task], settings, seed, asked.seconds))
        found.setdefault((variant, task), []).append(one)
        print(
            f"{task}; {variant}; seed {seed}: {one['failure'] or one['error']}", file=sys.stderr, flush=True
        )
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
