"""What a step of ``singd`` costs, as a ratio to AdamW's and to the public package's, and what it holds.

    python asv_benchmarks/singd_ratios.py [--against adamw|package|both] [--only NAME ...] [--rounds 15]

Network, data and the way of timing: ``pairs``.  A timing is whole cycles of T steps, so that the updates of
the factors are in it.  Against ``torch.optim.AdamW`` the methods run without grafting, with the given
structure and T (``method_ratios.py`` times the defaults).  Against the package ``singd`` both sides are given
the same settings.  Exits 1 if a median is above its bound.

| structure | ÷ AdamW, T = 10 | ÷ the package, T = 1 and 10 |
|---|--:|--:|
| dense | 3.2 | 0.75 |
| dense, IKFAC | – | 0.75 |
| hierarchical 15+15 | 1.4 | 0.75 |
| block-diagonal 30 | 1.3 | 0.75 |
| lower-toeplitz | 4 | 0.02 |
| lower-arrow | 1.15 | – |
| diagonal | 0.95 | 0.85 |
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pairs import (
    MLP,
    Pair,
    Ratio,
    Subject,
    hand_written,
    interleaved,
    nbytes,
    ours,
    quiet,
    tensor_bytes,
    torch_adamw,
)
from torch import nn

#: steps in one timing: whole cycles of every T
STEPS = 10

#: for both sides of a comparison with the package
SAME: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "damping": 1e-3}
CURVATURE_LR, CURVATURE_MOMENTUM = 1e-2, 0.5

#: momentum of the update, an absolute λ and the methods' own step lengths
PUBLISHED: dict[str, Any] = {
    "on_gradient": [],
    "on_update": [{"use": "momentum", "beta": SAME["momentum"]}],
    "preconditioner.relative": False,
}


@dataclass(frozen=True)
class Contender:
    """A structure under a method: bounds of its ratios, and what the package calls it."""

    structure: Mapping[str, Any]
    adamw: float | None = None
    package: float | None = None
    theirs: str = ""
    method: str = "singd"
    #: a step of the package takes seconds: one makes a timing, in at most two rounds.  At T = 10 that leaves
    #: the update of its factors out, which flatters it
    slow: bool = False


CONTENDERS = {
    "dense": Contender({"use": "dense"}, 3.2, 0.75, "dense"),
    "ikfac": Contender({"use": "dense"}, None, 0.75, "dense", method="ikfac"),
    "hierarchical": Contender(
        {"use": "hierarchical", "top": 15, "bottom": 15}, 1.4, 0.75, "hierarchical15_15"
    ),
    "block-diagonal": Contender({"use": "block-diagonal", "size": 30}, 1.3, 0.75, "block30diagonal"),
    "lower-toeplitz": Contender({"use": "lower-toeplitz"}, 4.0, 0.02, "triltoeplitz", slow=True),
    "lower-arrow": Contender({"use": "lower-arrow"}, 1.15),
    "diagonal": Contender({"use": "diagonal"}, 0.95, 0.85, "diagonal"),
}


@dataclass(frozen=True)
class Row:
    """One comparison: its name, who runs against whom, and the bound of their ratio."""

    name: str
    every: int
    against: str
    pair: Pair
    bound: float


def package(contender: Contender, every: int) -> Subject:
    """A step of the public package, whose structured matrices are no part of its ``state``."""
    from singd.optim.optimizer import SINGD  # type: ignore[import-untyped]

    kfac = contender.method == "ikfac"

    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = SINGD(
            model,
            T=every,
            structures=(contender.theirs, contender.theirs),
            kfac_like=kfac,
            alpha1=0.0 if kfac else CURVATURE_MOMENTUM,
            lr_cov=CURVATURE_LR,
            **SAME,
        )
        return optimizer

    def held(optimizer: Any) -> int:
        matrices = [m for kind in ("Ks", "Cs", "m_Ks", "m_Cs") for m in getattr(optimizer, kind).values()]
        factors = [t for m in matrices for _, t in m.named_tensors()]
        return tensor_bytes(optimizer) + nbytes(factors)

    return hand_written(MLP, make, held)


def ours_alike(contender: Contender, every: int) -> Subject:
    """A step of ours with the package's settings: heavy-ball momentum, an absolute λ, no grafting."""
    momentum = 0.0 if contender.method == "ikfac" else CURVATURE_MOMENTUM
    return ours(
        contender.method,
        settings=PUBLISHED,
        structure=contender.structure,
        refresh=every,
        labels="data",
        curvature_lr=CURVATURE_LR,
        curvature_momentum=momentum,
        lr=SAME["lr"],
        damping=SAME["damping"],
    )


def rows(only: Sequence[str], against: str, adamw: Subject) -> list[Row]:
    """The comparisons asked for, their optimizers made."""
    found = []
    for name in only:
        c = CONTENDERS[name]
        if c.adamw is not None and against != "package":
            subject = ours(c.method, structure=c.structure, refresh=10, labels="data", settings=PUBLISHED)
            found.append(Row(name, 10, "AdamW", Pair(subject, adamw, STEPS, STEPS), c.adamw))
        if c.package is not None and against != "adamw":
            for every in (1, 10):
                theirs = package(c, every)
                steps, rounds = (1, 2) if c.slow else (STEPS, 10**9)
                pair = Pair(ours_alike(c, every), theirs, STEPS, steps, rounds)
                found.append(Row(name, every, "package", pair, c.package))
    return found


def table(rows: Sequence[Row], ratios: Mapping[str, Ratio], adamw_bytes: int) -> str:
    """One line per comparison; bytes over AdamW's."""
    lines = [f"{'structure':15} {'T':>2} {'against':8} {'ratio':22} bound   bytes ÷ AdamW's, the other's"]
    for k, row in enumerate(rows):
        ratio = ratios[str(k)]
        mine, other = (s.state_bytes() / adamw_bytes for s in (row.pair.subject, row.pair.baseline))
        missed = "  MISSED" if ratio.median > row.bound else ""
        words = f"{row.name:15} {row.every:2} {row.against:8} {ratio!s:22} {row.bound:5}"
        lines.append(f"{words}   {mine:15.3f}  {other:11.3f}{missed}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit 1 if a median is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--against", choices=("adamw", "package", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args(argv)
    quiet()
    warnings.filterwarnings("ignore", "Calling naive implementation", UserWarning)
    adamw = torch_adamw()
    adamw.step()  # until then it holds nothing
    asked = rows(arguments.only, arguments.against, adamw)
    timed = interleaved({str(k): row.pair for k, row in enumerate(asked)}, arguments.rounds)
    ratios = {name: Ratio.of(found) for name, found in timed.items()}
    print(table(asked, ratios, adamw.state_bytes()))
    return int(any(ratios[str(k)].median > row.bound for k, row in enumerate(asked)))


if __name__ == "__main__":
    sys.exit(main())
