"""How long a step of two processes takes, as a ratio to one process with the same examples.

    python asv_benchmarks/rank_ratios.py [--rounds 15] [--steps 10]

Wall time, on a machine with two free cores: two processes of one thread, half of the examples each, beside
one process of one thread with all of them.  They take turns; the median of the ratios is reported.
Network and data: ``pairs`` (MLP 784-512-512-512-10, batch 128), methods at T = 1, in plain loops:
``DistributedDataParallel`` averages the gradients.

| method | bound |
|---|--:|
| kfac, dense, refresh 1 | 0.65 |
| singd, dense, refresh 1 | 0.65 |
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pairs import MLP, Ratio, quiet
from torch.nn.parallel import DistributedDataParallel

import curvlab

BOUND = 0.65
SUBJECTS: Mapping[str, dict[str, Any]] = {
    "kfac": {"method": "kfac", "refresh": 1, "labels": "data"},
    "kfac dense": {"method": "kfac", "refresh": 1, "labels": "data", "structure": "dense"},
    "singd dense": {"method": "singd", "refresh": 1, "structure": "dense"},
}


def steps_of(subject: str, rank: int, ranks: int, batch: int) -> Callable[[int], None]:
    """So many steps of a method in a plain loop, on this rank's share of each batch."""
    torch.manual_seed(0)
    model = MLP.model()
    optimizer = curvlab.optimizer(model=model, **SUBJECTS[subject])
    called = model if ranks == 1 else DistributedDataParallel(model)
    data = MLP.batches()

    def step() -> None:
        x, y = (t.repeat(batch // len(t), *[1] * (t.dim() - 1)).tensor_split(ranks)[rank] for t in next(data))
        optimizer.zero_grad()
        torch.autograd.backward(MLP.loss(called(x), y))
        optimizer.step()

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    return steps


def work(subject: str, rank: int, ranks: int, batch: int, store: str) -> None:
    """Steps whenever a line asks for some; answers with the seconds that they took."""
    quiet()
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    steps = steps_of(subject, rank, ranks, batch)
    for line in sys.stdin:
        begun = time.perf_counter()
        steps(int(line))
        print(time.perf_counter() - begun, flush=True)
    if ranks > 1:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Workers:
    """Processes that step together."""

    processes: list[subprocess.Popen[str]]

    def seconds(self, steps: int) -> float:
        """Wall time of so many steps, on the slowest."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in self.processes if process.stdout is not None]
        return max(map(float, answers))


@contextmanager
def workers(subject: str, ranks: int, batch: int) -> Iterator[Workers]:
    """So many processes of one thread."""
    with tempfile.TemporaryDirectory() as folder:
        told = [str(ranks), str(batch), f"{folder}/store"]
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--work", subject, str(rank), *told],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parent,
            )
            for rank in range(ranks)
        ]
        try:
            yield Workers(processes)
        finally:
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            for process in processes:
                process.wait(30)


def measured(subject: str, batch: int, rounds: int, steps: int) -> Ratio:
    """Two processes beside one, round by round."""
    with workers(subject, 1, batch) as one, workers(subject, 2, batch) as two:
        one.seconds(steps), two.seconds(steps)
        found = []
        for _ in range(rounds):
            alone = one.seconds(steps)
            found.append(two.seconds(steps) / alone)
    return Ratio.of(found)


def main() -> int:
    """Print the table; exit 1 if a median is above the bound."""
    if sys.argv[1:2] == ["--work"]:
        subject, rank, ranks, batch, store = sys.argv[2:]
        work(subject, int(rank), int(ranks), int(batch), store)
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128, help="examples of a step, a multiple of 128")
    arguments = parser.parse_args()
    rows = {name: measured(name, arguments.batch, arguments.rounds, arguments.steps) for name in SUBJECTS}
    for name, row in rows.items():
        print(f"{name:20} {row}  bound {BOUND}")
    return int(any(row.median > BOUND for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
