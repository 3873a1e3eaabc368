"""What a step of a contestant costs beside AdamW's and ``kfac``'s, and the bytes it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from training import ADAMW, NETS, Contestant, Ledger, Pair, Ratio, interleaved, name_of

#: steps in one timing, at least; it is whole refresh cycles
STEPS = 10

BASELINES = {"adamw": Contestant("adamw", ADAMW, {"lr": 1e-3}), "kfac": Contestant("kfac", "kfac")}


@dataclass(frozen=True)
class Cost:
    """Bytes over AdamW's, and the time of a step over AdamW's and over ``kfac``'s: medians."""

    state: float
    adamw: float
    kfac: float


def costs(ledger: Ledger, net: str, found: Sequence[Contestant], rounds: int) -> dict[str, Cost]:
    """Costs by name; those that are not in the ledger are measured together, in interleaved rounds."""
    keys = {c.name: c.key(cost=net, **{k: b.key()["method"] for k, b in BASELINES.items()}) for c in found}
    known = ledger.read()
    missing = [c for c in found if name_of(keys[c.name]) not in known]
    if missing:
        for name, cost in measured(net, missing, rounds).items():
            known[name_of(keys[name])] = ledger.get(keys[name], partial(asdict, cost))
    return {c.name: Cost(**known[name_of(keys[c.name])]) for c in found}


def measured(net: str, found: Sequence[Contestant], rounds: int) -> dict[str, Cost]:
    """Each against both baselines, in every round, at a rate so low that no method diverges."""
    problem = NETS[net].problem()
    bases = {name: slowly(b).subject(problem) for name, b in BASELINES.items()}
    pairs = {}
    for c in found:
        subject = slowly(c).subject(problem)
        cycle = int(c.knobs.get("refresh", 1))
        steps = cycle * -(-STEPS // cycle)
        for name, base in bases.items():
            pairs[f"{c.name} {name}"] = Pair(subject, base, steps, STEPS)
    timed = interleaved(pairs, rounds)
    held = bases["adamw"].state_bytes()
    made = {}
    for c in found:
        ratios = {name: Ratio.of(timed[f"{c.name} {name}"]).median for name in BASELINES}
        ratios |= {name: 1.0 for name, b in BASELINES.items() if b.key()["method"] == c.key()["method"]}
        made[c.name] = Cost(pairs[f"{c.name} adamw"].subject.state_bytes() / held, **ratios)
        print(f"{c.name}: {ratios['adamw']:.2f} of AdamW's step, {ratios['kfac']:.2f} of kfac's", flush=True)
    return made


def slowly(c: Contestant) -> Contestant:
    """The same work on a network that hardly moves."""
    return replace(c, knobs={**c.knobs, "lr": 1e-6})
