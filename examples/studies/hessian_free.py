"""Hessian-free optimization: what a preconditioner and growing samples save.  Float32, one thread.

    curvlab tasks prepare speech-frames --minutes 10 --to data/speech-10
    curvlab tasks prepare speech-frames --minutes 60 --to data/speech-60
    python examples/studies/hessian_free.py --runs runs/hessian-free \\
        --speech-10 data/speech-10 --speech-60 data/speech-60

Plain Hessian-free optimization (``PLAIN``: all examples in each gradient, a fixed curvature sample, no
preconditioner) gets a budget of seconds; the training loss it reaches is what the others run for: with the
paper's preconditioner, with samples that grow, with both, ``hf-gn`` as it is (whose L-BFGS starts from KFAC),
and AdamW, KFAC and torch's L-BFGS.
Seconds are CPU time of one thread, evaluations left out.  Runs that exist are not repeated (use a new folder
when code changes; changed settings are noticed); ``--task``, ``--seeds`` and ``--only`` name pieces, which
several processes may run at once.  Writes ``docs/studies/hessian-free.md`` and ``.png``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from hessian_free_page import write
from training import ADAMW, ROOT, Ledger, name_of, quiet

from curvlab.config import build_method, build_part
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import Diverged
from curvlab.parts.samplers import Uniform
from curvlab.precision.full import Full
from curvlab.protocols.sampler import Draw, SampleStream
from curvlab.protocols.task import Task
from curvlab.registry.loader import installed
from curvlab.tasks.fashion_autoencoder import FashionAutoencoder
from curvlab.tasks.supervised import SupervisedWorkload

PAGE = ROOT / "docs" / "studies" / "hessian-free.md"
SEEDS = (0, 1, 2)
#: seconds of one thread that plain HF gets on each task
BUDGETS = {"autoencoder": 1200.0, "speech-10": 300.0, "speech-60": 600.0}
#: training examples that the training loss is taken on
MEASURED = 10_000
LBFGS = "torch.optim.LBFGS"
MICRO_BATCH = 1024

#: as knobs of ``hf-gn``: the paper's preconditioner, L-BFGS from γI, and what is left where an ingredient is
#: left out; the samples are then those of the literature's baseline
SOLVES: dict[str, Any] = {"max_iterations": 30, "micro_batch": MICRO_BATCH}
PAPERS: dict[str, Any] = {**SOLVES, "inner": {"use": "lbfgs", "source": "solve", "memory": 10}}
NO_PRECONDITIONER: dict[str, Any] = {**SOLVES, "inner": {"use": "identity"}}
FIXED: dict[str, Any] = {
    "gradient": 1.0,
    "gradient_growth": 1.0,
    "curvature": 0.03,
    "curvature_growth": 1.0,
}


@dataclass(frozen=True)
class Entrant:
    """A method under the name that the tables give it."""

    name: str
    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict)


PLAIN = Entrant("plain", "hf-gn", {**NO_PRECONDITIONER, **FIXED})
ENTRANTS = (
    PLAIN,
    Entrant("with the preconditioner", "hf-gn", {**PAPERS, **FIXED}),
    Entrant("with growing samples", "hf-gn", NO_PRECONDITIONER),
    Entrant("with both", "hf-gn", PAPERS),
    Entrant("hf-gn", "hf-gn", {"micro_batch": MICRO_BATCH}),
    Entrant(ADAMW, ADAMW, {"lr": 1e-3}),
    Entrant("kfac", "kfac"),
    Entrant(LBFGS, LBFGS, {"history_size": 16, "line_search_fn": "strong_wolfe", "max_iter": 1}),
)


@dataclass
class Spent:
    """What a run has cost so far; ``examples`` counts those of gradients, torch's closures included."""

    seconds: float = 0.0
    examples: int = 0
    products: int = 0
    product_examples: int = 0


#: one step: it trains, and adds to what was spent
Step = Callable[[Spent], None]


def stepper(entrant: Entrant, workload: SupervisedWorkload, task: Task, seed: int) -> Step:
    """What one step of an entrant is."""
    if entrant.method == ADAMW:
        return _by_batches(
            torch.optim.AdamW(workload.model.parameters(), **entrant.knobs), workload, task, seed
        )
    if entrant.method == LBFGS:
        return _by_torch_lbfgs(torch.optim.LBFGS(workload.model.parameters(), **entrant.knobs), workload)
    method = build_method(installed(), entrant.method, entrant.knobs)
    samples = SampleStream.of(method.sampler or Uniform(), workload.size, task.batch_size, seed)
    optimizer = CurvatureOptimizer(
        method, workload.model, backend=Full(), seed=seed, name=entrant.name, samples=samples
    )

    def step(spent: Spent) -> None:
        draw = samples.draw()
        optimizer.step(workload.objective(draw))
        assert optimizer.last is not None
        spent.examples += len(draw.gradient)
        spent.products += optimizer.last.products or 0
        spent.product_examples += optimizer.last.product_examples or 0

    return step


def _by_batches(adamw: torch.optim.Optimizer, workload: SupervisedWorkload, task: Task, seed: int) -> Step:
    sampler = Uniform()
    state = sampler.init(workload.size, task.batch_size, seed)

    def step(spent: Spent) -> None:
        draw = sampler.draw(state)
        workload.objective(draw)()
        adamw.step()
        spent.examples += len(draw.gradient)

    return step


def _by_torch_lbfgs(lbfgs: torch.optim.LBFGS, workload: SupervisedWorkload) -> Step:
    everything = torch.arange(workload.size)
    objective = workload.objective(Draw(everything, everything, everything, MICRO_BATCH))

    def step(spent: Spent) -> None:
        def closure() -> float:
            spent.examples += workload.size
            return float(objective())

        lbfgs.step(closure)

    return step


def run(entrant: Entrant, task: Task, seed: int, budget: float, target: float | None) -> dict[str, Any]:
    """Train until ``budget`` seconds are spent or the training loss is at ``target``; the way there."""
    torch.manual_seed(seed)
    model = task.model()
    workload = task.workload(model, dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(workload, SupervisedWorkload)
    measured = torch.randperm(workload.size, generator=torch.Generator().manual_seed(0))[:MEASURED]
    loss_of = partial(training_loss, workload, measured)
    step, spent, steps = stepper(entrant, workload, task, seed), Spent(), 0
    points = [[0.0, 0, 0, 0, loss_of()]]
    ends = 0.0
    try:
        while spent.seconds < budget:
            begun = time.process_time()
            step(spent)
            spent.seconds += time.process_time() - begun
            steps += 1
            if (
                spent.seconds >= ends
            ):  # a look costs time that nobody counts: no more than one per two percent
                ends = max(spent.seconds * 1.02, spent.seconds + budget / 400)
                points.append([*vars(spent).values(), loss_of()])
                if target is not None and points[-1][-1] <= target:
                    break
    except Diverged as error:
        return {"points": points, "steps": steps, "failure": str(error), "metrics": {}}
    if points[-1][0] != spent.seconds:
        points.append([*vars(spent).values(), loss_of()])
    return {"points": points, "steps": steps, "failure": "", "metrics": dict(workload.metrics())}


@torch.no_grad()
def training_loss(workload: SupervisedWorkload, rows: torch.Tensor) -> float:
    """Mean loss on some of the training examples."""
    total = 0.0
    for part in rows.split(2000):
        x, y = workload.training.rows(part)
        total += float(workload.loss.mean(workload.model(x), y)) * len(part)
    return total / len(rows)


def tasks_of(asked: argparse.Namespace) -> dict[str, Task]:
    """The tasks that are asked for and whose data are there, by name."""
    found: dict[str, Task] = {"autoencoder": FashionAutoencoder()}
    for name, folder in (("speech-10", asked.speech_10), ("speech-60", asked.speech_60)):
        if folder is not None:
            found[name] = build_part(installed(), Task, "speech-frames", {"root": str(folder)})
    return {name: task for name, task in found.items() if name in asked.task}


@lru_cache(maxsize=32)
def composed(entrant_method: str, knobs: str) -> str:
    """A method of ours with every setting spelled out; nothing for torch's."""
    if entrant_method in (ADAMW, LBFGS):
        return ""
    return repr(build_method(installed(), entrant_method, json.loads(knobs)))


def key(entrant: Entrant, task: str, seed: int, budget: float) -> dict[str, Any]:
    """A run's name: all its settings."""
    named = dict(entrant.knobs)
    method = composed(entrant.method, json.dumps(named))
    return {
        "entrant": entrant.name,
        "knobs": named,
        "method": method,
        "task": task,
        "seed": seed,
        "budget": budget,
    }


def pieces(asked: argparse.Namespace) -> Iterator[tuple[str, Task, int, float]]:
    """Task by task, seed by seed."""
    for (name, task), seed in itertools.product(tasks_of(asked).items(), asked.seeds):
        yield name, task, seed, asked.budgets[name]


def seconds_by_task(words: Sequence[str]) -> dict[str, float]:
    """What ``--budget`` says: ``SECONDS`` for every task, ``TASK=SECONDS`` for one; else the tasks' own."""
    found = dict(BUDGETS)
    for word in words:
        task, _, seconds = word.rpartition("=")
        if task and task not in BUDGETS:
            raise SystemExit(f"--budget {word}: no task is called {task}; there are {', '.join(BUDGETS)}")
        found.update(dict.fromkeys([task] if task else BUDGETS, float(seconds)))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, plain HF first, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [e.name for e in ENTRANTS]
    parser.add_argument("--runs", type=Path, default=Path("runs/hessian-free"))
    parser.add_argument("--task", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--speech-10", type=Path)
    parser.add_argument("--speech-60", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument(
        "--budget",
        nargs="+",
        default=[],
        metavar="[TASK=]SECONDS",
        help="for plain HF, instead of the task's own",
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args(argv)
    asked.budgets = seconds_by_task(asked.budget)
    quiet()
    torch.set_num_threads(1)
    ledger = Ledger(asked.runs)
    for name, task, seed, budget in pieces(asked):
        plain = ledger.get(key(PLAIN, name, seed, budget), partial(run, PLAIN, task, seed, budget, None))
        target = plain["points"][-1][-1]
        for entrant in [e for e in ENTRANTS if e.name in asked.only and e is not PLAIN]:
            made = partial(run, entrant, task, seed, budget, target)
            result = ledger.get(key(entrant, name, seed, budget), made)
            seconds, *_, loss = result["points"][-1]
            print(
                f"{name} seed {seed} {entrant.name}: {loss:.4g} of {target:.4g} after {seconds:.0f} s",
                flush=True,
            )
    options = f" --budget {' '.join(asked.budget)}" if asked.budget else ""
    if tuple(asked.seeds) != SEEDS:
        options += f" --seeds {' '.join(map(str, asked.seeds))}"
    write(asked.page, gathered(ledger, asked.budgets), asked.budgets, options)
    return 0


def gathered(ledger: Ledger, budgets: Mapping[str, float]) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """Every finished run of the present settings: by task, entrant and seed."""
    there = ledger.read()
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for task, entrant, seed in itertools.product(BUDGETS, ENTRANTS, range(100)):
        plain = there.get(name_of(key(PLAIN, task, seed, budgets[task])))
        one = there.get(name_of(key(entrant, task, seed, budgets[task])))
        if plain is not None and one is not None:
            target = plain["points"][-1][-1]
            found.setdefault(task, {}).setdefault(entrant.name, {})[seed] = {**one, "target": target}
    return found


if __name__ == "__main__":
    raise SystemExit(main())
