"""Stability of SINGD, INGD and IKFAC at their default settings, on Fashion-MNIST.

    python examples/studies/singd_stability.py --runs runs/singd-stability

Every structure that a factor can have, T = 1 and 10, five seeds, float32, batch 128; 5,000 steps of the MLP
784-32-32-10 and 1,000 of 784-512-512-512-10.  A run fails if a loss, a parameter or a state is ever not
finite, or if the smoothed loss is ever above its start.  Runs that exist are not repeated (use a new folder
when code changes; changed defaults are noticed), and ``--only``, ``--net``, ``--every`` and ``--seeds`` name
pieces, which several processes may run at once.  Writes ``docs/studies/singd-stability.md``; exits 1 if a
run failed.  About two hours on one core.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training import NETS, ROOT, Contestant, Ledger, families, name_of, quiet

import curvlab
from curvlab.errors import Diverged

PAGE = ROOT / "docs" / "studies" / "singd-stability.md"
STEPS = {"narrow": 5000, "mlp": 1000}
SHAPES = {"narrow": "784-32-32-10", "mlp": "784-512-512-512-10"}
SEEDS = (0, 1, 2, 3, 4)

#: of the smoothed loss
DECAY = 0.98
#: batches that the start is averaged over, and steps before the smoothed loss, which then averages as many
#: losses, is judged
START = 10
#: steps between looks at parameters and states, where what is not finite stays so
LOOK = 100


def contestants(every: Sequence[int]) -> list[Contestant]:
    """Every structure under ``singd``, and the two methods that are settings of it."""
    found = []
    for T in every:
        found += [Contestant(f, "singd", {"structure": f, "refresh": T}) for f in families()]
        found += [Contestant(m, m, {"refresh": T}) for m in ("ingd", "ikfac")]
    return found


def key(c: Contestant, net: str, seed: int, steps: int) -> dict[str, object]:
    """A run's name."""
    return c.key(net=net, T=c.knobs["refresh"], seed=seed, steps=steps)


def run(c: Contestant, net: str, seed: int, steps: int) -> dict[str, Any]:
    """One run: loss at the start, smoothed loss at the end and at its worst, and what went wrong."""
    model, batches = NETS[net].model(seed), NETS[net].batches(seed)
    optimizer = curvlab.optimizer(c.method, model, seed=seed, **c.knobs)
    first = list(itertools.islice(batches, START))
    with torch.no_grad():
        start = sum(float(NETS[net].loss(model(x), y)) for x, y in first) / START
    total, worst, smoothed, failure = 0.0, 0.0, math.nan, ""
    for k, (x, y) in enumerate(itertools.islice(itertools.chain(first, batches), steps), 1):
        try:
            loss = optimizer.step(curvlab.objective(model, NETS[net].criterion, x, y))
        except Diverged as error:
            failure = f"step {k}: {error}"
            break
        assert loss is not None
        total = DECAY * total + (1 - DECAY) * loss.item()
        smoothed = total / (1 - DECAY**k)
        if k >= min(START, steps):
            worst = max(worst, smoothed)
        look = k % LOOK == 0 or k == steps
        if not (math.isfinite(smoothed) and (not look or finite(model.parameters(), optimizer))):
            failure = f"step {k}: not finite"
            break
    return {"start": start, "end": smoothed, "worst": worst, "failure": failure}


def finite(parameters: Any, optimizer: curvlab.CurvatureOptimizer) -> bool:
    """Whether all parameters and states are."""
    tensors: list[Tensor] = [*parameters, *optimizer.snapshot()[0].values()]
    return all(bool(torch.isfinite(t).all()) for t in tensors)


def held(found: Mapping[str, Any]) -> bool:
    """Whether a run kept to the criterion."""
    return not found["failure"] and found["worst"] <= found["start"]


def row(c: Contestant, found: Sequence[Mapping[str, Any]]) -> str:
    """One line of a table: a contestant over its seeds."""
    good = [f for f in found if not f["failure"]]
    ends = [f["end"] for f in good]
    end = f"{sum(ends) / len(ends):.3f} ({min(ends):.3f} – {max(ends):.3f})" if ends else "–"
    worst = f"{max(f['worst'] / f['start'] for f in good):.3f}" if good else "–"
    failures = "; ".join(sorted({f["failure"] for f in found if f["failure"]}))
    name = c.name if c.name == c.method else f"singd, {c.name}"
    passed = f"{sum(map(held, found))} of {len(found)}"
    return f"| {name} | {c.knobs['refresh']} | {end} | {worst} | {passed} | {failures} |"


def page(ledger: Ledger, steps: Mapping[str, int]) -> str:
    """The page of the study, of all runs that exist."""
    runs, tables = ledger.read(), []
    done = asked = 0
    for net in STEPS:
        lines = [
            f"## {SHAPES[net]}, {steps[net]:,} steps\n",
            "| | T | smoothed loss at the end | worst ÷ start | runs that held | failures |",
            "|---|--:|--:|--:|--:|---|",
        ]
        for c in contestants((1, 10)):
            names = [name_of(key(c, net, seed, steps[net])) for seed in SEEDS]
            found = [runs[name] for name in names if name in runs]
            done, asked = done + len(found), asked + len(names)
            if found:
                lines.append(row(c, found))
        tables.append("\n".join(lines))
    body = "\n\n".join(tables)
    return f"""# Stability of SINGD at its defaults

Fashion-MNIST, MLPs with ReLU, batch 128, float32, shuffled epochs, every method at its default settings
but for structure and T, the steps between updates of its factors; {len(SEEDS)} seeds for the start, the
batches and the labels. {done} of {asked} runs are in.

A run holds if no loss, parameter or state is ever not finite (losses are looked at in every step, the others
every {LOOK} steps: what is not finite stays so) and the smoothed loss is never above its start. The smoothed
loss is the exponential average of the batch losses, decay {DECAY}, corrected for its bias; it is judged
from step {START} on. Its start is the loss of the untrained network on the run's first {START} batches, of
which that average then is made. Losses at the end: mean (smallest – largest seed).

{body}

```
python examples/studies/singd_stability.py --runs runs/singd-stability
```
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page; exit 1 if a run that was asked for failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [*families(), "ingd", "ikfac"]
    parser.add_argument("--runs", type=Path, default=Path("runs/singd-stability"))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--net", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--every", nargs="+", type=int, choices=(1, 10), default=[1, 10], help="T")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="instead of 5,000 and 1,000")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args(argv)
    quiet()
    ledger, steps = Ledger(asked.runs), {net: asked.steps or STEPS[net] for net in STEPS}
    good = True
    for net, seed, c in itertools.product(asked.net, asked.seeds, contestants(asked.every)):
        if c.name in asked.only:
            found = ledger.get(key(c, net, seed, steps[net]), partial(run, c, net, seed, steps[net]))
            good &= held(found)
            words = (
                f"{found['end']:.3f} at the end, {found['worst'] / found['start']:.3f} of the start at worst"
            )
            print(
                f"{net} {c.name} T={c.knobs['refresh']} seed {seed}: {found['failure'] or words}", flush=True
            )
    asked.page.parent.mkdir(parents=True, exist_ok=True)
    asked.page.write_text(page(ledger, steps))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
