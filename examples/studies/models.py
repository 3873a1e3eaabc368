"""Nine networks that others wrote: what share kfac and singd treat, and their loss beside AdamW's.

    python examples/studies/models.py                                    # train, about an hour on one core
    python examples/studies/models.py --networks gpt2 --methods singd    # these alone, the others stay
    python examples/studies/models.py --draw                             # the page from committed numbers

Each network is trained by a plain loop of 200 steps by ``torch.optim.AdamW``, ``kfac`` and ``singd``:
float32, one thread, constant rates; at four rates with the first seed, at the best of them with the others.
Needs transformers and torch_geometric.  Writes ``models.json`` and ``models.md`` in ``docs``.  Exits 1 if a
method treats less than 95 % of a network, or ends above AdamW.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from model_zoo import NETWORKS, Network
from models_page import Study, lapses, written
from torch import nn
from training import ADAMW, ROOT, quiet

import curvlab
from curvlab.errors import CurvlabError

PAGE = ROOT / "docs" / "models.md"
STEPS, SEEDS = 200, (0, 1, 2)
#: method -> its knobs beside the rate; what a plain loop tells kfac of the loss is its gradient at the data
METHODS: Mapping[str, Mapping[str, Any]] = {ADAMW: {}, "kfac": {"labels": "data"}, "singd": {}}


def optimizer_of(
    method: str, net: Network, model: nn.Module, rate: float, seed: int
) -> torch.optim.Optimizer:
    """The optimizer of a method, at its defaults but for the rate."""
    if method == ADAMW:
        return torch.optim.AdamW(model.parameters(), lr=rate)
    return curvlab.optimizer(method, model, lr=rate, reduction=net.reduction, seed=seed, **METHODS[method])


def train(
    net: Network, method: str, rate: float, seed: int, steps: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The losses of one run, and what the method treats; a run that is not finite ends at infinity."""
    torch.manual_seed(seed)
    model = net.make().train()
    optimizer = optimizer_of(method, net, model, rate, seed)
    losses, failure, seconds = [], "", 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for batch in itertools.islice(net.source().batches(net.batch, seed), steps):
                begun = time.process_time()
                optimizer.zero_grad()
                loss = net.loss(model, batch)
                torch.autograd.backward(loss)
                optimizer.step()
                seconds += time.process_time() - begun
                losses.append(float(loss.detach()))
        except CurvlabError as error:
            failure = f"step {len(losses)}: {error}"
    run = {
        "method": method, "rate": rate, "seed": seed, "steps": steps,
        "first": losses[0] if losses else math.inf, "last": statistics.fmean(losses[-10:] or [math.inf]),
        "loss": measured(net, model, held_out=False), "held_out": measured(net, model, held_out=True),
        "seconds": seconds, "failure": failure,
    }  # fmt: skip
    said = sorted({f"{w.category.__name__}: {w.message}" for w in caught})
    return {k: _short(v) for k, v in run.items()}, {**treated(method, optimizer), "warnings": said}


def _short(value: Any) -> Any:
    """Five digits; infinity for what is no number."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else math.inf


@torch.no_grad()
def measured(net: Network, model: nn.Module, *, held_out: bool) -> float:
    """Mean loss of a part of the data, without dropout."""
    model.eval()
    return statistics.fmean(float(net.loss(model, batch)) for batch in net.source().measured(held_out))


def treated(method: str, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Elements that are trained, those that the method treats itself, and those it does not, by reason."""
    if not isinstance(optimizer, curvlab.CurvatureOptimizer):
        return {}
    rows = [row for row in optimizer.coverage() if row.treatment != "frozen"]
    others: dict[str, int] = {}
    for row in rows:
        if row.treatment != method:
            others[row.reason] = others.get(row.reason, 0) + row.size
    total = sum(row.size for row in rows)
    return {"elements": total, "treated": total - sum(others.values()), "others": others}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs that are asked for, beside those that were made; write numbers and page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draw", action="store_true", help="use the numbers in the JSON file; train nothing")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", nargs="+", type=float, help="default: those of the network")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args(argv)
    data = asked.page.with_suffix(".json")
    study = Study.read(data)
    if not asked.draw:
        quiet()
        for seed, name, method in itertools.product(asked.seeds, asked.networks, asked.methods):
            rates = asked.rates or NETWORKS[name].rates
            own = rates if seed == asked.seeds[0] else [study.best(name, method)[0]["rate"]]
            for rate in own:
                run, coverage = train(NETWORKS[name], method, rate, seed, asked.steps)
                study.add(name, run, coverage)
                study.write(data)
                print(f"{name}, {run}, {coverage}", flush=True)
    asked.page.write_text(written(study))
    found = lapses(study)
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
