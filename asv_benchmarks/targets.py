"""What a step of every method costs beside AdamW's, against what public packages take.

    OMP_NUM_THREADS=1 python asv_benchmarks/targets.py [--only NAME ...] [--rounds 21]

Network, data and the way of timing: ``pairs``; methods at their defaults but for structure and T, whole
cycles of ten steps.  ``hf-gn``'s row shows the share of its step that is vector work, on the
deep autoencoder (784-1000-500-250-30 mirrored): all that is neither a Gauss-Newton product, an evaluation, a
trial loss nor KFAC's matrices.  Exits 1 if a median is above its bound.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pairs import Pair, Ratio, interleaved, ours, quiet, torch_adamw

import curvlab
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.objectives.products import GaussNewton
from curvlab.objectives.supervised import SupervisedObjective
from curvlab.parts.inverted import Inverted
from curvlab.tasks.fashion_autoencoder import FashionAutoencoder
from curvlab.tasks.supervised import SupervisedWorkload

#: steps of one timing: a whole cycle of every T
STEPS = 10
VECTORS = "hf-gn, vector work"


@dataclass(frozen=True)
class Target:
    """A method under some knobs, the largest ratio allowed, and what the best public package takes."""

    method: str
    bound: float
    public: str
    knobs: Mapping[str, Any] = field(default_factory=dict)


def singd(structure: str, every: int, bound: float, public: float, **settings: int) -> Target:
    """``singd`` with one structure on both sides."""
    knobs = {"structure": {"use": structure, **settings}, "refresh": every}
    return Target("singd", bound, f"{public} (singd)", knobs)


TARGETS = {
    "kfac, T = 10": Target("kfac", 1.8, "2.4 (asdl)", {"refresh": 10}),
    "ekfac, T = 10": Target("ekfac", 2.5, "4.8 (kfac-pytorch)", {"refresh": 10}),
    "soap, T = 10": Target("soap", 7.9, "7.9 (the fastest of four)", {"refresh": 10}),
    "shampoo, T = 10": Target("shampoo", 7.2, "7.2 (the faster of two)", {"refresh": 10}),
    "dense, T = 10": singd("dense", 10, 2.9, 4.5),
    "dense, T = 1": singd("dense", 1, 6.0, 8.7),
    "hierarchical 15+15, T = 10": singd("hierarchical", 10, 1.3, 2.25, top=15, bottom=15),
    "hierarchical 15+15, T = 1": singd("hierarchical", 1, 2.0, 3.5, top=15, bottom=15),
    "block-diagonal 30, T = 10": singd("block-diagonal", 10, 1.25, 1.9, size=30),
    "block-diagonal 30, T = 1": singd("block-diagonal", 1, 1.8, 2.8, size=30),
    "diagonal, T = 10": singd("diagonal", 10, 0.9, 1.14),
    "diagonal, T = 1": singd("diagonal", 1, 1.1, 1.37),
}
#: the largest share of a step
VECTOR_SHARE = 0.15

#: what is no vector work, by what a user would call it
OTHERS: Mapping[str, Sequence[tuple[type, str]]] = {
    "products": [(GaussNewton, "__matmul__")],
    "evaluation": [(SupervisedObjective, "evaluate")],
    "trial losses": [(SupervisedObjective, "loss")],
    "KFAC": [(Inverted, "observe"), (Inverted, "refresh"), (Inverted, "apply")],
}


@contextlib.contextmanager
def clocked(spent: dict[str, float]) -> Iterator[None]:
    """Adds the CPU seconds of ``OTHERS`` to ``spent`` while it lasts."""
    before = {(c, m): getattr(c, m) for pairs in OTHERS.values() for c, m in pairs}

    def timed(name: str, method: Any) -> Any:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - begun

        return run

    try:
        for name, pairs in OTHERS.items():
            for owner, method in pairs:
                setattr(owner, method, timed(name, before[owner, method]))
        yield
    finally:
        for (owner, method), original in before.items():
            setattr(owner, method, original)


def shares(rounds: int) -> list[dict[str, float]]:
    """The shares of the time of each round of ten steps of ``hf-gn``, by where it went."""
    torch.manual_seed(0)
    task = FashionAutoencoder()
    workload = task.workload(task.model(), dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(workload, SupervisedWorkload)
    optimizer = curvlab.optimizer("hf-gn", workload.model)
    assert isinstance(optimizer, CurvatureOptimizer)
    sampler = optimizer.method.sampler
    assert sampler is not None
    state = sampler.init(workload.size, task.batch_size, 0)
    found = []
    for k in range(rounds + 1):
        spent: dict[str, float] = {}
        begun = time.process_time()
        with clocked(spent):
            for _ in range(STEPS):
                optimizer.step(workload.objective(sampler.draw(state)))
        whole = time.process_time() - begun
        shares = {name: seconds / whole for name, seconds in spent.items()}
        if k:  # the first round warms up
            found.append({**shares, "vector work": 1.0 - sum(shares.values())})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit 1 if a median is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [*TARGETS, VECTORS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=21)
    asked = parser.parse_args(argv)
    quiet()
    chosen = {name: t for name, t in TARGETS.items() if name in asked.only}
    adamw = torch_adamw()
    pairs = {name: Pair(ours(t.method, **t.knobs), adamw, STEPS, STEPS) for name, t in chosen.items()}
    good = True
    print("| step | ÷ AdamW | bound | public |\n|---|--:|--:|--:|")
    for name, rounds in interleaved(pairs, asked.rounds).items():
        ratio, target = Ratio.of(rounds), chosen[name]
        missed = ratio.median > target.bound
        good &= not missed
        print(f"| {name} | {ratio}{' **missed**' if missed else ''} | {target.bound} | {target.public} |")
    if VECTORS in asked.only:
        rounds_ = shares(max(2, asked.rounds // 7))
        found = {name: statistics.median(r.get(name, 0.0) for r in rounds_) for name in rounds_[0]}
        good &= found["vector work"] <= VECTOR_SHARE
        print(f"\n`hf-gn`, shares of a step (vector work: at most {VECTOR_SHARE}):")
        print(", ".join(f"{name} {share:.2f}" for name, share in found.items()))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
