"""FNGD with fixed and with shuffled slots against KFAC and SGD on an MLP, at equal CPU seconds.

    python examples/studies/fngd.py --runs runs/fngd [--seconds 40]

MLP 784-256-128-10, the first 12,800 training images in batches of 128, float32, one thread.  ``fngd``
averages its weights over the first epoch, 100 steps: by the position in a batch with shuffled batches, or by
the position in an epoch with batches that are the same in every epoch.  Each entrant is shown at its best
rate by the training loss at the end.  Runs that exist are not repeated.  Writes ``docs/studies/fngd.md``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training import ROOT, Ledger, images

import curvlab
from curvlab.tasks.mlp import mlp

PAGE = ROOT / "docs" / "studies" / "fngd.md"
EXAMPLES, BATCH = 12_800, 128


@dataclass(frozen=True)
class Entrant:
    """A method, whether its batches are shuffled, and the rates that it is tried at."""

    method: str
    rates: Sequence[float]
    shuffled: bool = True
    knobs: Mapping[str, Any] = field(default_factory=dict)


ENTRANTS = {
    "sgd": Entrant("sgd", (0.03, 0.1, 0.3), knobs={"momentum": 0.9}),
    "sgd, fixed batches": Entrant("sgd", (0.03, 0.1, 0.3), False, {"momentum": 0.9}),
    "kfac": Entrant("kfac", (1e-3, 3e-3, 1e-2), knobs={"labels": "data"}),
    "fngd, shuffled slots": Entrant("fngd", (1e-3, 3e-3, 1e-2), knobs={"slots": "batch", "warmup": 100}),
    "fngd, fixed slots": Entrant("fngd", (1e-3, 3e-3, 1e-2), False, {"slots": "epoch", "warmup": 100}),
    "smw-ngd": Entrant("smw-ngd", (1e-3, 3e-3, 1e-2)),
}


def run(entrant: Entrant, lr: float, seconds: float) -> dict[str, Any]:
    """Losses over all training examples, and how far the kept weights of a layer differ."""
    torch.manual_seed(0)
    model = mlp((784, 256, 128, 10), "relu")
    data = images("train", False)
    x, y = data.inputs[:EXAMPLES].flatten(1), data.targets[:EXAMPLES]
    optimizer = curvlab.optimizer(entrant.method, model, lr=lr, **entrant.knobs)
    generator, order = torch.Generator().manual_seed(0), torch.arange(EXAMPLES)
    used, steps, losses = 0.0, 0, []
    while used < seconds:
        k = steps % (EXAMPLES // BATCH)
        if k == 0 and entrant.shuffled:
            order = torch.randperm(EXAMPLES, generator=generator)
        chosen = order[k * BATCH : (k + 1) * BATCH]
        begun = time.process_time()
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x[chosen], y[chosen]))
        used += time.process_time() - begun
        steps += 1
        if len(losses) < int(4 * used / seconds):
            losses.append(_loss(model, x, y))
    return {"losses": losses, "steps": steps, "spread": _spread(optimizer)}


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(F.cross_entropy(model(x), y))


def _spread(optimizer: Any) -> float | None:
    """The standard deviation of a layer's kept weights over their mean, the largest of all layers."""
    weights = getattr(optimizer.arms[0].state.preconditioner, "weights", None)
    if weights is None:
        return None
    used = [w[:, :BATCH] for w in weights.values()]
    return max(float(w.std() / w.mean().abs()) for w in used)


def page(runs: Mapping[str, Any], seconds: float) -> str:
    """The page, of all runs that exist."""
    rows = []
    for name, entrant in ENTRANTS.items():
        found = [(r, lr) for lr in entrant.rates for r in runs.values() if r["of"] == [name, lr, seconds]]
        if not found:
            continue
        best, lr = min(found, key=lambda f: f[0]["losses"][-1])
        losses = " | ".join(f"{v:.4f}" for v in best["losses"])
        spread = "–" if best["spread"] is None else f"{best['spread']:.2f}"
        rows.append(f"| {name} | {lr:g} | {best['steps']:,} | {losses} | {spread} |")
    times = " | ".join(f"{seconds * k / 4:g} s" for k in range(1, 5))
    body = "\n".join(rows)
    return f"""# FNGD: example weights that are kept

MLP 784-256-128-10 on the first 12,800 images of Fashion-MNIST, batches of {BATCH}, float32, one thread, one
seed. The loss over these images after so many CPU seconds of training, each entrant at its best of three
rates. The last column is the standard deviation of the kept weights of a layer over their mean, the largest
of all layers.

| entrant | rate | steps | {times} | spread of weights |
|---|--:|--:|--:|--:|--:|--:|--:|
{body}

```
python examples/studies/fngd.py --runs runs/fngd --seconds {seconds:g}
```
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("runs/fngd"))
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    ledger = Ledger(asked.runs)
    for name, entrant in ENTRANTS.items():
        for lr in entrant.rates:
            key = {"entrant": name, "lr": lr, "seconds": asked.seconds}
            found = ledger.get(key, partial(_named, name, entrant, lr, asked.seconds))
            print(f"{name} {lr:g}: {found['losses']} after {found['steps']:,} steps", flush=True)
    asked.page.write_text(page(ledger.read(), asked.seconds))
    return 0


def _named(name: str, entrant: Entrant, lr: float, seconds: float) -> dict[str, Any]:
    return {"of": [name, lr, seconds], **run(entrant, lr, seconds)}


if __name__ == "__main__":
    sys.exit(main())
