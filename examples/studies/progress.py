"""Settings of SINGD and AdamW at equal compute, each at the best of its rates."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from timing import Cost, costs
from training import ADAMW, NETS, Contestant, Ledger

from curvlab.errors import Diverged

#: network -> the steps of AdamW whose compute everybody gets
STEPS = {"mlp": 2500, "autoencoder": 500}

SHAPES = {
    "mlp": "MLP 784-512-512-512-10, batch 128",
    "autoencoder": "Deep autoencoder 784-1000-500-250-30 mirrored, batch 1024, loss summed over pixels",
}


@dataclass(frozen=True)
class Rival:
    """A contestant and the rates that it is tried at."""

    contestant: Contestant
    rates: Sequence[float] = (5e-4, 1e-3, 2e-3, 4e-3)

    def at(self, rate: float) -> Contestant:
        """The contestant at one of them."""
        return replace(self.contestant, knobs={**self.contestant.knobs, "lr": rate})


BASELINE = Rival(Contestant("torch.optim.AdamW", ADAMW), (3e-4, 5e-4, 1e-3, 2e-3))

BLOCKS = {"use": "block-diagonal", "size": 64}

#: rates that are tuned need a looser bound on the step than the default, which is for any network
FREE: dict[str, Any] = {"norm_constraint": 1e-3}


def _singd(name: str, **knobs: Any) -> Contestant:
    return Contestant(name, "singd", {**knobs, **FREE})


#: network -> who meets AdamW there; sampled labels where the mean gradient would pass for curvature
RIVALS: dict[str, Sequence[Rival]] = {
    "mlp": (
        Rival(_singd("singd, dense", structure="dense")),
        Rival(_singd("singd, dense, λ = 3e-4", structure="dense", damping=3e-4)),
        Rival(_singd("singd, blocks of 64", structure=BLOCKS)),
        Rival(_singd("singd, hierarchical", structure="hierarchical")),
        Rival(_singd("singd, diagonal", structure="diagonal")),
        Rival(Contestant("ikfac", "ikfac", FREE)),
    ),
    "autoencoder": tuple(
        Rival(
            _singd(
                f"singd, {name}, sampled labels, λ = 3e-2", structure=structure, labels="model", damping=3e-2
            ),
            (3e-3, 1e-2, 2e-2, 3e-2),
        )
        for name, structure in (("dense", "dense"), ("blocks of 64", BLOCKS))
    ),
}


def rivals_of(path: Path | None, net: str) -> Sequence[Rival]:
    """Those of a JSON list of objects with name, method, knobs, settings, rates; without one, ``RIVALS``."""
    if path is None:
        return RIVALS[net]
    made = []
    for entry in json.loads(path.read_text()):
        rates = {"rates": entry.pop("rates")} if "rates" in entry else {}
        made.append(Rival(Contestant(**entry), **rates))
    return made


def run(c: Contestant, net: str, steps: int) -> dict[str, Any]:
    """Training loss over all training examples after ``steps`` steps, seed 0; infinite if it gave up."""
    at = NETS[net]
    model = at.model(0)
    step = c.start(model, at)
    try:
        for x, y in itertools.islice(at.batches(0), steps):
            step(x, y)
    except Diverged:
        return {"loss": math.inf}
    loss, _ = at.evaluate(model, "train")
    return {"loss": loss if math.isfinite(loss) else math.inf}


def line(ledger: Ledger, rival: Rival, net: str, budget: int, cost: Cost) -> str:
    """One row: every rate for as many steps as fit."""
    steps, losses = int(budget / cost.adamw), {}
    for rate in rival.rates:
        c = rival.at(rate)
        key = c.key(study="progress", net=net, steps=steps)
        losses[rate] = ledger.get(key, partial(run, c, net, steps))["loss"]
        print(f"{c.name}, rate {rate:g}: {losses[rate]:.4f} after {steps} steps", flush=True)
    best = min(losses, key=lambda rate: losses[rate])
    every = ", ".join(f"{rate:g}: {loss:.4g}" for rate, loss in losses.items())
    head = f"{rival.contestant.name} | {cost.state:.2f} | {cost.adamw:.2f} | {steps:,}"
    return f"| {head} | {best:g} | {losses[best]:.4g} | {every} |"


def section(ledger: Ledger, net: str, budget: int, rivals: Sequence[Rival], rounds: int) -> str:
    """The table of one network; what is missing is measured and run."""
    adamw = BASELINE.contestant
    measured = costs(ledger, net, [r.contestant for r in rivals], rounds)
    rows = [
        "| | state ÷ AdamW's | step ÷ AdamW's | steps | best rate | training loss there | at every rate |",
        "|---|--:|--:|--:|--:|--:|---|",
        line(ledger, BASELINE, net, budget, Cost(1.0, 1.0, math.nan)),
        *(line(ledger, r, net, budget, measured[r.contestant.name]) for r in rivals),
    ]
    table = "\n".join(rows)
    return f"""## Equal compute: {net}

{SHAPES[net]}.
Constant rates, seed 0; every method has the time of {budget:,} steps of `{adamw.name}`. The training loss is
that of all training examples at the end.

{table}"""
