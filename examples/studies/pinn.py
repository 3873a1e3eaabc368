"""Networks that solve differential equations: the error that each method comes to in a given time.

    python examples/studies/pinn.py --runs runs/pinn [--seconds 30]

Tasks of ``curvlab-pinn``, all points in every step, float64, one thread, CPU seconds.  Methods without a
search for the rate are run at each of three rates and shown at the best of them by the median over
seeds.  Runs that exist are not repeated (use a new folder when code changes), so that several processes may
work with different ``--seeds``.  Writes ``docs/studies/pinn.md``.  With the defaults, 37 minutes of one core.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from training import ROOT, Ledger, name_of

import curvlab
from curvlab.errors import Diverged
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Task
from curvlab_pinn.tasks.heat import Heat
from curvlab_pinn.tasks.poisson import Poisson

PAGE = ROOT / "docs" / "studies" / "pinn.md"
SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3, 1e-2)

#: by name: the task and how it is told of in the page
TASKS: dict[str, tuple[Task, str]] = {
    "poisson-2": (Poisson(), "−Δu = f in 2 dimensions, `Π sin(π x_i)`, 2-64-1, 900 + 120 points"),
    "poisson-5": (
        Poisson(dimension=5, solution="cosine-sum", hidden=(64, 64), interior=1500, boundary=500),
        "−Δu = f in 5 dimensions, `Σ cos(π x_i)`, 5-64-64-1, 1500 + 500 points",
    ),
    "heat-5": (
        Heat(dimension=5, interior=1500, boundary=500),
        "∂u/∂t = Δu in 1 + 4 dimensions, 5-64-64-1, 1500 + 500 points",
    ),
}


@dataclass(frozen=True)
class Entrant:
    """A method, its settings, and the rates that it is tried at."""

    method: str
    rates: Sequence[float] = ()
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> list[dict[str, Any]]:
        """One for each rate."""
        return [{**self.knobs, "lr": lr} for lr in self.rates] or [dict(self.knobs)]


ENTRANTS = {
    "adamw": Entrant("adamw", RATES),
    "soap": Entrant("soap", RATES),
    "lbfgs": Entrant("lbfgs"),
    "kfac-pinn": Entrant("kfac-pinn"),
}


def run(task: Task, method: str, knobs: Mapping[str, Any], seed: int, seconds: float) -> dict[str, Any]:
    """The relative error after so many CPU seconds, and the steps; a seed is a start of the network."""
    torch.manual_seed(seed)
    workload = task.workload(task.model(), dtype=torch.float64, device=torch.device("cpu"))
    optimizer = curvlab.optimizer(method, workload.model, seed=seed, **knobs)
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


def key(task: str, method: str, knobs: Mapping[str, Any], seed: int, seconds: float) -> dict[str, object]:
    """A run's name."""
    return {"task": task, "method": method, "knobs": dict(knobs), "seed": seed, "seconds": seconds}


def row(name: str, entrant: Entrant, task: str, runs: Mapping[str, Any], seconds: float) -> str:
    """One line of a table: an entrant at its best rate."""
    tried = []
    for knobs in entrant.settings():
        names = [name_of(key(task, entrant.method, knobs, seed, seconds)) for seed in SEEDS]
        found = [runs[n] for n in names if n in runs]
        if found:
            tried.append((statistics.median(f["error"] for f in found), knobs.get("lr"), found))
    if not tried:
        return f"| {name} | – | – | – | – |"
    median, lr, found = min(tried, key=lambda t: t[0])
    errors = [f["error"] for f in found]
    steps = statistics.median(f["steps"] for f in found)
    rate = "searched" if lr is None else f"{lr:g}"
    spread = f"{min(errors):.1e} – {max(errors):.1e}"
    return f"| {name} | {rate} | {steps:,.0f} | {median:.1e} | {spread} |"


def page(runs: Mapping[str, Any], seconds: float) -> str:
    """The page, of all runs that exist."""
    tables = []
    for name, (_, words) in TASKS.items():
        head = (
            "| method | rate | steps | relative error, median | smallest – largest |\n|---|--:|--:|--:|--:|"
        )
        rows = [row(e, entrant, name, runs, seconds) for e, entrant in ENTRANTS.items()]
        tables.append("\n".join([f"## {words}\n", head, *rows]))
    body = "\n\n".join(tables)
    return f"""# Networks that solve differential equations

The relative error at 9,000 test points after {seconds:g} CPU seconds; all points in every step, float64,
one thread, {len(SEEDS)} starts of the network. Methods at their default settings; those that do not search
for their rate at the best of {", ".join(f"{lr:g}" for lr in RATES)}, by the median.

{body}

```
python examples/studies/pinn.py --runs runs/pinn
```
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page; exit 1 if a run diverged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("runs/pinn"))
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--only", nargs="+", choices=ENTRANTS, default=list(ENTRANTS), metavar="NAME")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    ledger, good = Ledger(asked.runs), True
    for seed, task, name in itertools.product(asked.seeds, asked.tasks, asked.only):
        entrant = ENTRANTS[name]
        for knobs in entrant.settings():
            work = partial(run, TASKS[task][0], entrant.method, knobs, seed, asked.seconds)
            found = ledger.get(key(task, entrant.method, knobs, seed, asked.seconds), work)
            good &= not found["failure"]
            words = found["failure"] or f"{found['error']:.2e} after {found['steps']:,} steps"
            print(f"{task} {name} {dict(knobs)} seed {seed}: {words}", flush=True)
    asked.page.parent.mkdir(parents=True, exist_ok=True)
    asked.page.write_text(page(ledger.read(), asked.seconds))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
