"""Training in bfloat16: what breaks, what holds, and what it saves, on Fashion-MNIST.

    python examples/studies/low_precision.py laws          # five experiments on one layer, a minute
    python examples/studies/low_precision.py methods       # ten methods, three precisions, three networks
    python examples/studies/low_precision.py damping       # KFAC with factors in bfloat16, by its damping
    python examples/studies/low_precision.py families      # SINGD in bfloat16 against float32, 1,000 steps
    python examples/studies/low_precision.py roles         # one role at a time in float32
    python examples/studies/low_precision.py stability     # the study of stability, in bfloat16
    python examples/studies/low_precision.py --draw        # the page from the committed numbers
    python examples/studies/low_precision.py methods --nets mlp --only kfac --seeds 1

Runs that exist are not made again (changed settings and defaults are noticed), so that a study is made in
pieces.  One CPU thread.  Writes ``low-precision.md``, ``.svg`` and ``low-precision/runs.jsonl`` in
``docs/studies``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from low_precision_laws import laws
from low_precision_page import Found, picture, written
from low_precision_runs import BFLOAT16, FLOAT32, MIXED, Entrant, train
from training import ROOT, Ledger, families, quiet

PAGE = ROOT / "docs" / "studies" / "low-precision.md"
SEEDS = (0, 1, 2)

#: steps by network in ``methods``; in ``damping``; in ``families`` and ``roles``; in ``stability``
STEPS = {"mlp": 200, "convnet": 60, "vit": 30}
SHORT, LONG, STABLE = 300, 1000, 5000
#: in units of the mean curvature; the default of most methods first
DAMPINGS = (3e-2, 1e-3, 1e-4, 1e-5)

#: one run: who, in which precision, on which network, how many steps
Planned = tuple[Entrant, Mapping[str, Any], str, int]

STRUCTURES = ("dense", "block-diagonal", "hierarchical", "diagonal")
METHODS = (
    *(Entrant(f"singd, {s}", "singd", {"structure": s}) for s in STRUCTURES),
    *(Entrant(method, method) for method in ("ikfac", "ingd", "kfac", "ekfac", "soap", "adamw")),
)
#: KFAC with its factors kept in bfloat16, by rounding of their averages
BROKEN = tuple(
    Entrant(f"kfac, factors in bfloat16, {how}", "kfac", {}, {"factors": "bfloat16", "averages": how})
    for how in ("stochastic", "nearest")
)
#: what bfloat16 is without in ``roles``: one of its roundings, or a role in it
WITHOUT: Sequence[Mapping[str, Any]] = (
    {"parameter_write": "nearest"},
    {"parameter_write": "master"},
    {"moments": "float32"},
    {"factors": "float32"},
)


def methods(asked: argparse.Namespace) -> Iterator[Planned]:
    """Every method in every precision."""
    for net in asked.nets:
        for precision in (FLOAT32, MIXED, BFLOAT16):
            for entrant in (*METHODS, *(BROKEN if precision is BFLOAT16 else ())):
                yield entrant, precision, net, STEPS[net]


def damping(asked: argparse.Namespace) -> Iterator[Planned]:
    """Dense factors on the small network by damping: KFAC's in both dtypes, and those of inverses."""
    for value in DAMPINGS:
        knobs = {"structure": "dense", "damping": value}
        for entrant in (*METHODS, *BROKEN):
            if entrant.method in ("kfac", "ikfac", "ingd") or entrant.name == "singd, dense":
                made = replace(entrant, name=f"{entrant.name}, λ = {value:g}", knobs=knobs)
                for precision in (BFLOAT16,) if entrant in BROKEN else (FLOAT32, BFLOAT16):
                    yield made, precision, "narrow", SHORT


def of_families(asked: argparse.Namespace) -> Iterator[Planned]:
    """SINGD with every structure in float32 and bfloat16."""
    for structure in families():
        for precision in (FLOAT32, BFLOAT16):
            yield Entrant(f"singd, {structure}", "singd", {"structure": structure}), precision, "mlp", LONG


def roles(asked: argparse.Namespace) -> Iterator[Planned]:
    """SINGD in bfloat16 but for one role, on the small network, whose seeds cost little."""
    for structure in STRUCTURES[:2]:
        for precision in (FLOAT32, BFLOAT16, *({**BFLOAT16, **without} for without in WITHOUT)):
            yield Entrant(f"singd, {structure}", "singd", {"structure": structure}), precision, "narrow", LONG


def stability(asked: argparse.Namespace) -> Iterator[Planned]:
    """Every structure, INGD and IKFAC, T = 1 and 10."""
    for T in (10, 1):
        for structure in families():
            knobs = {"structure": structure, "refresh": T}
            yield Entrant(f"singd, {structure}, T = {T}", "singd", knobs), BFLOAT16, "narrow", asked.steps
        for method in ("ingd", "ikfac"):
            yield Entrant(f"{method}, T = {T}", method, {"refresh": T}), BFLOAT16, "narrow", asked.steps


PARTS: Mapping[str, Callable[[argparse.Namespace], Iterator[Planned]]] = {
    "methods": methods,
    "damping": damping,
    "families": of_families,
    "roles": roles,
    "stability": stability,
}


def make(ledger: Ledger, asked: argparse.Namespace) -> None:
    """The runs of a part that are asked for and missing."""
    for seed in asked.seeds:
        for entrant, precision, net, steps in PARTS[asked.part](asked):
            if asked.only and not set(asked.only) & set(entrant.name.split(", ")):
                continue
            key = entrant.key(precision, net=net, steps=steps, seed=seed)
            found = ledger.get(key, partial(train, entrant, precision, net, steps, seed))
            print(
                f"{net}, {entrant.name}, {entrant.in_(precision)}, seed {seed}: {found['end']:.4f},"
                f" {found['loss']:.4f}, {found['bytes']} bytes, {found['seconds']} s, {found['events']}"
                f" {found['not_finite']} {found['failure']}",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Make what was asked for and is missing; write the page of all there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", nargs="?", choices=(*PARTS, "laws"))
    parser.add_argument("--draw", action="store_true", help="write the page alone")
    parser.add_argument("--page", type=Path, default=PAGE, help="runs are in a folder of its name")
    parser.add_argument("--nets", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--only", nargs="+", metavar="WORD", help="entrants with one of these in their names")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STABLE, help="of stability")
    asked = parser.parse_args(argv)
    if asked.part is None and not asked.draw:
        parser.error("name a part, or --draw")
    ledger = Ledger(asked.page.with_suffix(""))
    quiet()
    torch.set_num_threads(1)
    if asked.part == "laws":
        laws(ledger)
    elif asked.part is not None:
        make(ledger, asked)
    asked.page.write_text(written(ledger))
    picture(Found(ledger.entries()), asked.page.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
