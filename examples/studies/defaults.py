"""Methods at their defaults on five networks: how far in AdamW's time, and whether they stay stable.

    python examples/studies/defaults.py equal      # the CPU time of 250 AdamW steps, AdamW at its best rate
    python examples/studies/defaults.py stable     # 300 steps, the loss times 1, 100 and 0.01
    python examples/studies/defaults.py lengths    # every rule of `grafting`
    python examples/studies/defaults.py equal --tasks mlp --seeds 1 2

Time is process CPU time of one thread.  A method and AdamW take turns on the same batches, and the ratio of
their steps says how many steps fit; then each run makes so many, and depends on its seed alone.  The training
loss is that of the first 2,000 training examples at the end.  Finished runs are kept in ``--runs`` and not
made again.  Exits 1 if kfac or singd ends above AdamW, or a run is unstable.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from defaults_page import written
from torch import Tensor
from training import ADAMW, Ledger, quiet

import curvlab
from curvlab.errors import CurvlabError
from curvlab.protocols.task import Task
from curvlab.tasks.character_gpt import CharacterGpt
from curvlab.tasks.fashion_autoencoder import FashionAutoencoder
from curvlab.tasks.fashion_convnet import FashionConvnet
from curvlab.tasks.fashion_mnist import FashionMnist
from curvlab.tasks.fashion_vit import FashionVit
from curvlab.tasks.supervised import SupervisedWorkload
from curvlab.testing.scaled import Scaled

PAGE = Path(__file__).resolve().parents[2] / "docs" / "studies" / "defaults.md"

TASKS: Mapping[str, Any] = {
    "mlp": FashionMnist(),
    "autoencoder": FashionAutoencoder(),
    "convnet": FashionConvnet(),
    "vit": FashionVit(),
    "character-gpt": CharacterGpt(),
}

#: examples of a batch in ``stable``, which asks whether a run holds, not how fast: noisier and cheaper
SMALL_BATCH = {"mlp": 64, "autoencoder": 128, "convnet": 32, "vit": 16, "character-gpt": 8}

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SCALES = (1.0, 100.0, 0.01)
METHODS = ("kfac", "ekfac", "foof", "ikfac", "ingd", "singd")
RULES = ("adam", "adafactor", "rows", "block", "unit", "none")

#: training examples on which the loss at the end is computed, and as many at a time
EXAMPLES, CHUNK = 2000, 500

#: steps of one timing, a whole cycle of refreshes, and timings; the first is left out
CYCLE, ROUNDS = 10, 3

#: steps whose batch losses are averaged for the end of a run
LAST = 10


@dataclass(frozen=True)
class Entry:
    """A method with its knobs, or torch's AdamW at a rate."""

    method: str
    knobs: tuple[tuple[str, Any], ...] = ()

    def start(self, workload: SupervisedWorkload, seed: int) -> Callable[[Tensor, Tensor], float]:
        """A function that trains on one batch and returns the loss before the step."""
        model, loss = workload.model, workload.loss
        if self.method == ADAMW:
            adamw = torch.optim.AdamW(model.parameters(), **dict(self.knobs))

            def by_torch(x: Tensor, y: Tensor) -> float:
                adamw.zero_grad()
                value = loss.mean(model(x), y)
                torch.autograd.backward(value)
                adamw.step()
                return float(value.detach())

            return by_torch
        ours = curvlab.optimizer(self.method, model, seed=seed, **dict(self.knobs))
        return lambda x, y: float(ours.step(curvlab.objective(model, loss, x, y)))

    def key(self, task: str, **more: object) -> dict[str, object]:
        """What tells its runs from others; of our methods, with all settings."""
        composed: object = list(self.knobs)
        if self.method != ADAMW:
            composed = repr(curvlab.optimizer(self.method, torch.nn.Linear(2, 2), **dict(self.knobs)).method)
        return {"task": task, "method": self.method, "composed": composed, **more}


def workload_of(task: Task, seed: int, scale: float = 1.0) -> SupervisedWorkload:
    """The task at work in float32, its loss times ``scale``."""
    torch.manual_seed(seed)
    work = task.workload(task.model(), dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(work, SupervisedWorkload)
    if scale != 1.0:
        work.loss = Scaled(work.loss, scale)
    return work


def batches(work: SupervisedWorkload, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless shuffled epochs; a batch may reach over the end of one."""
    generator, left = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(work.size, generator=generator)])
        rows, left = left[:size], left[size:]
        yield work.training.rows(rows)


@torch.no_grad()
def training_loss(work: SupervisedWorkload) -> float:
    """Mean loss of the first training examples."""
    n, total = min(EXAMPLES, work.size), 0.0
    for start in range(0, n, CHUNK):
        x, y = work.training.rows(torch.arange(start, min(start + CHUNK, n)))
        total += float(work.loss.mean(work.model(x), y)) * len(x)
    return total / n


def ratio(task: Task, entry: Entry) -> dict[str, Any]:
    """CPU time of a step over that of an AdamW step, in turns; the median over rounds of whole cycles."""
    entries = (Entry(ADAMW, (("lr", 1e-3),)), entry)
    works = [workload_of(task, 0) for _ in entries]
    steps = [e.start(w, 0) for e, w in zip(entries, works, strict=True)]
    streams = [batches(w, task.batch_size, 0) for w in works]
    found = []
    for _ in range(ROUNDS):
        times = []
        for step, stream in zip(steps, streams, strict=True):
            drawn = list(itertools.islice(stream, CYCLE))
            begun = time.process_time()
            for x, y in drawn:
                step(x, y)
            times.append(time.process_time() - begun)
        found.append(times[1] / times[0])
    return {"ratio": statistics.median(found[1:]), "least": min(found[1:]), "most": max(found[1:])}


def train(task: Task, entry: Entry, steps: int, seed: int, scale: float = 1.0) -> dict[str, Any]:
    """The first, worst and last batch losses and the training loss, over ``scale``; why it ended early."""
    work = workload_of(task, seed, scale)
    step, losses, failure = entry.start(work, seed), [], ""
    try:
        for x, y in itertools.islice(batches(work, task.batch_size, seed), steps):
            losses.append(step(x, y) / scale)
    except CurvlabError as error:
        failure = f"step {len(losses)}: {error}"
    last = statistics.fmean(losses[-LAST:])
    found = {"first": losses[0], "worst": max(losses), "last": last, "failure": failure}
    return {**found, "loss": math.inf if failure else training_loss(work) / scale}


def stable(found: Mapping[str, Any]) -> bool:
    """Whether a run came to its end, below where it began, and never far above."""
    held = not found["failure"] and math.isfinite(found["loss"])
    return bool(held and found["last"] < found["first"] and found["worst"] < 2 * found["first"])


def equal(ledger: Ledger, asked: argparse.Namespace) -> bool:
    """AdamW at every rate, and the methods for as many steps as fit."""
    good = True
    for task, seed in itertools.product(asked.tasks, asked.seeds):
        best = math.inf
        for rate in (best_rate(ledger, task),) if asked.best else asked.rates:
            entry = Entry(ADAMW, (("lr", rate),))
            found = _run(ledger, task, entry, asked.adamw_steps, seed, kind="equal", budget=asked.adamw_steps)
            best = min(best, found["loss"])
        for method in asked.methods:
            entry = Entry(method)
            cost = ledger.get(entry.key(task, kind="ratio"), partial(ratio, TASKS[task], entry))
            steps = round(asked.adamw_steps / cost["ratio"])
            found = _run(ledger, task, entry, steps, seed, kind="equal", budget=asked.adamw_steps)
            good &= method not in ("kfac", "singd") or task == "autoencoder" or found["loss"] < best
    return good


def best_rate(ledger: Ledger, task: str) -> float:
    """AdamW's best rate among finished runs of a task."""
    runs = [e for e in ledger.entries() if e["key"].get("kind") == "equal" and e["key"]["task"] == task]
    of_adamw = [e for e in runs if e["key"]["method"] == ADAMW]
    return float(min(of_adamw, key=lambda e: e["found"]["loss"])["key"]["composed"][0][1])


def steady(ledger: Ledger, asked: argparse.Namespace) -> bool:
    """Every method on every task at every scale of the loss."""
    good = True
    for task, scale, method in itertools.product(asked.tasks, asked.scales, asked.methods):
        size = SMALL_BATCH[task]
        small = replace(TASKS[task], batch_size=size)
        key = {"kind": "stable", "scale": scale, "batch": size, "steps": asked.steps}
        for seed in asked.seeds:
            entry = Entry(method)
            run = partial(train, small, entry, asked.steps, seed, scale)
            found = ledger.get(entry.key(task, seed=seed, **key), run)
            good &= stable(found)
            print(f"{task}, {method}, loss × {scale:g}, seed {seed}: {found}", flush=True)
    return good


def lengths(ledger: Ledger, asked: argparse.Namespace) -> bool:
    """Every rule of ``grafting``, for as many steps."""
    for task, method, rule in itertools.product(asked.tasks, asked.methods, RULES):
        rates = (3e-3,) if rule not in ("unit", "none") else (3e-4, 1e-3)
        for rate, seed in itertools.product(rates, asked.seeds):
            entry = Entry(method, (("grafting", rule), ("lr", rate)))
            _run(ledger, task, entry, asked.steps, seed, kind="lengths", rule=rule)
    return True


def _run(ledger: Ledger, task: str, entry: Entry, steps: int, seed: int, **more: object) -> Mapping[str, Any]:
    key = entry.key(task, steps=steps, seed=seed, **more)
    found = ledger.get(key, partial(train, TASKS[task], entry, steps, seed))
    print(f"{task}, {entry.method} {dict(entry.knobs)}, {steps} steps, seed {seed}: {found}", flush=True)
    return found


PARTS: Mapping[str, Callable[[Ledger, argparse.Namespace], bool]] = {
    "equal": equal,
    "stable": steady,
    "lengths": lengths,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make what was asked for and is missing, and write the page of all there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--runs", type=Path, default=Path("runs/defaults"))
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="*", help="default: kfac and singd; for stable, all six")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rates", nargs="*", type=float, default=list(RATES), help="AdamW's")
    parser.add_argument("--best", action="store_true", help="AdamW at the best rate of finished runs alone")
    parser.add_argument("--scales", nargs="+", type=float, default=list(SCALES))
    parser.add_argument("--adamw-steps", type=int, default=250, help="whose time everyone gets")
    parser.add_argument("--steps", type=int, default=300)
    asked = parser.parse_args(argv)
    if asked.methods is None:
        asked.methods = METHODS if asked.part == "stable" else ("kfac", "singd")
    quiet()
    torch.set_num_threads(1)
    ledger = Ledger(asked.runs)
    good = PARTS[asked.part](ledger, asked)
    asked.page.write_text(written(ledger))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
