"""What low-rank inverses lose and save on a real wide layer; ``kbfgs`` beside ``kfac`` on an autoencoder.

    python examples/studies/lowrank.py [--only inverse flops train kbfgs]

Fashion-MNIST, float32, one thread, CPU seconds, seed 0, one run each.  Prints the tables of the pages
``rs-kfac``, ``b-r-kfac`` and ``kbfgs`` in Markdown.  All of them: ten minutes of one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import curvlab
from curvlab.linalg.flops import flops
from curvlab.parts.samplers import Uniform
from curvlab.precision.full import Full
from curvlab.structures.dense import Dense
from curvlab.tasks.fashion_autoencoder import FashionAutoencoder
from curvlab.tasks.fashion_convnet import FashionConvnet
from curvlab_lowrank.correction import correct_, overwrite_
from curvlab_lowrank.eigenvalues import Search
from curvlab_lowrank.spectrum import LowRankInverse, Rest, continued_inverse
from curvlab_structures.low_rank import LowRank, LowRankMatrix

T = TypeVar("T")

DECAY, DAMPING, OVERSAMPLING, OVERWRITE, CORRECT = 0.95, 3e-2, 10, 10, 0.2
#: the last batches, whose mean loss is the training loss
LAST = 20


@dataclass(frozen=True)
class Sizes:
    """What a short form makes smaller."""

    convnet: FashionConvnet = field(default_factory=FashionConvnet)
    autoencoder: FashionAutoencoder = field(default_factory=lambda: FashionAutoencoder(batch_size=256))
    batches: int = 60  #: of the convnet
    steps: int = 200  #: of the autoencoder
    rank: int = 220
    dimensions: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    repeats: int = 3


def timed(work: Callable[[], T], repeats: int) -> tuple[T, float]:
    """What it returns, and the median of its CPU seconds."""
    spent = []
    for _ in range(repeats):
        begun = time.process_time()
        found = work()
        spent.append(time.process_time() - begun)
    return found, statistics.median(spent)


def training(
    task: Any,
    method: str,
    steps: int,
    knobs: Mapping[str, Any],
    watch: Callable[[nn.Module], Any] | None = None,
) -> tuple[list[float], float, int]:
    """The loss of every batch, CPU seconds, and bytes of state."""
    torch.manual_seed(0)
    workload = task.workload(task.model(), dtype=torch.float32, device=torch.device("cpu"))
    if watch is not None:
        watch(workload.model)
    optimizer: Any = curvlab.optimizer(method, workload.model, **knobs)
    state = (sampler := Uniform()).init(workload.size, task.batch_size, 0)
    begun = time.process_time()
    losses = [float(optimizer.step(workload.objective(sampler.draw(state)))) for _ in range(steps)]
    return losses, time.process_time() - begun, optimizer.state_bytes()


def wide_rows(sizes: Sizes) -> list[Tensor]:
    """Inputs of the convnet's wide layer, a column of ones appended, in every batch under AdamW."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        found.append(torch.cat([x, x.new_ones(len(x), 1)], 1))

    def watch(model: nn.Module) -> None:
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        max(linear, key=lambda m: m.in_features).register_forward_pre_hook(keep)

    training(sizes.convnet, "adamw", sizes.batches, {"lr": 1e-3}, watch)
    return found


def inverses(sizes: Sizes) -> Iterator[str]:
    """Error of the damped inverse and time of a refresh, over the exact one."""
    backend, generator = Full("float32"), torch.Generator().manual_seed(0)
    rows = wide_rows(sizes)
    d = rows[0].shape[1]
    like = torch.zeros(())
    M = Dense().zeros(d, like=like)
    low = LowRank(sizes.rank)
    held = {name: low.zeros(d, like=like) for name in ("b-kfac", "b-r-kfac", "b-r-c-kfac")}
    spent: dict[str, list[float]] = {"average": [], **{name: [] for name in held}}
    search = Search(sizes.rank, OVERSAMPLING, 1, 0.0)
    some = min(round(CORRECT * sizes.rank + 1), sizes.rank)
    for k, X in enumerate(rows):
        w = (1 - DECAY) / (1 - DECAY ** (k + 1))
        _, seconds = timed(lambda X=X, w=w: Dense().average_(M, 1 - w, X, w / len(X), backend), 1)  # type: ignore[misc]
        spent["average"].append(seconds)
        for name, L in held.items():
            begun = time.process_time()
            if name != "b-kfac" and k % OVERWRITE == 0:
                overwrite_(L, M.matrix, search, backend, generator)
            else:
                low.average_(L, 1 - w, X, w / len(X), backend)
                if name == "b-r-c-kfac":
                    columns = torch.randperm(L.vectors.shape[1], generator=generator)[:some]
                    correct_(L, M.matrix, columns, backend)
            spent[name].append(time.process_time() - begun)
    shift = float(DAMPING**0.5 * M.mean_diagonal())
    _, exact = timed(lambda: backend.inverse(M.matrix.clone(), shift), sizes.repeats)
    truth = torch.linalg.inv(M.matrix.double() + shift * torch.eye(d, dtype=torch.float64))

    def error(inverse: LowRankInverse | LowRankMatrix) -> float:
        return float((inverse @ torch.eye(d) - truth).norm() / truth.norm())

    yield f"d = {d}, rank {sizes.rank}, λ = {DAMPING:g}; exact inverse {exact:.2f} s, dense average "
    yield f"{statistics.mean(spent['average']):.3f} s of each batch.\n"
    yield "| | rest | refresh, s | of the exact | error of the inverse |\n|---|---|--:|--:|--:|"
    rests: tuple[Rest, ...] = ("mean", "least", "zero")
    for rounds in (0, 1, 3):
        found = Search(sizes.rank, OVERSAMPLING, rounds, 0.0)
        (D, U), seconds = timed(lambda s=found: s.largest(M.matrix, backend, generator), sizes.repeats)  # type: ignore[misc]
        for rest in rests:
            inverse = continued_inverse(D, U, M.matrix.diagonal().sum(), shift, sizes.rank, rest)
            head = f"| `rs-kfac`, {rounds} rounds | {rest} | {seconds:.3f} | {seconds / exact:.3f} |"
            yield f"{head} {100 * error(inverse):.2f} % |"
    for name, L in held.items():
        seconds = statistics.mean(spent[name])
        found_error = 100 * error(low.inverse(L, shift, backend))
        yield f"| `{name}` | mean | {seconds:.3f} | {seconds / exact:.3f} | {found_error:.2f} % |"


def brand_flops(sizes: Sizes) -> Iterator[str]:
    """Flops of one of ``b-kfac``'s updates of a factor, over those of the smallest dimension."""
    backend, low = Full("float32"), LowRank(sizes.rank)
    yield "| d | flops of an update | over the first | d over the first |\n|--:|--:|--:|--:|"
    first, counts = sizes.dimensions[0], []
    for d in sizes.dimensions:
        L, X = low.zeros(d, like=torch.zeros(())), torch.randn(64, d)
        counts.append(flops(lambda L=L, X=X: low.average_(L, 0.95, X, 0.05, backend)))  # type: ignore[misc]
        yield f"| {d} | {counts[-1]:.3g} | {counts[-1] / counts[0]:.2f} | {d / first:g} |"


def trained(sizes: Sizes) -> Iterator[str]:
    """The convnet by ``kfac`` with dense factors, and by those with low-rank ones."""
    yield "| method | training loss | CPU seconds | state |\n|---|--:|--:|--:|"
    for name, knobs in (
        ("kfac", {"structure": "dense"}),
        ("kfac", {}),
        ("rs-kfac", {"rank": sizes.rank}),
        ("b-kfac", {"rank": sizes.rank}),
        ("b-r-kfac", {"rank": sizes.rank}),
        ("b-r-c-kfac", {"rank": sizes.rank}),
    ):
        losses, seconds, held = training(sizes.convnet, name, sizes.batches, {"lr": 3e-3, **knobs})
        shown = f"`{name}`" + (", dense" if "structure" in knobs else "")
        yield f"| {shown} | {statistics.mean(losses[-LAST:]):.3f} | {seconds:.1f} | {held / 1e6:.0f} MB |"


def quasi_newton(sizes: Sizes) -> Iterator[str]:
    """The autoencoder by ``kbfgs`` and by what its page compares it with."""
    yield "| method | training loss | CPU seconds |\n|---|--:|--:|"
    for name, knobs in (
        ("kfac", {"refresh": 1}),
        ("kbfgs", {}),
        ("kbfgs-l", {}),
        ("adamw", {"lr": 3e-3}),
    ):
        losses, seconds, _ = training(sizes.autoencoder, name, sizes.steps, knobs)
        yield f"| `{name}` | {statistics.mean(losses[-LAST:]):.1f} | {seconds:.1f} |"


TABLES: Mapping[str, Callable[[Sizes], Iterator[str]]] = {
    "inverse": inverses,
    "flops": brand_flops,
    "train": trained,
    "kbfgs": quasi_newton,
}


def main(argv: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES), metavar="TABLE")
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in asked.only:
        print(f"\n## {name}\n")
        for line in TABLES[name](sizes or Sizes()):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
