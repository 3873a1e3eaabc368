"""Does curvature of a kind of layer help?  Methods with and without the readers of some kinds.

    OMP_NUM_THREADS=1 python examples/studies/readers.py
    OMP_NUM_THREADS=1 python examples/studies/readers.py --tasks vit --methods singd --steps 100

What no reader reads, the method's fallback trains, at the same rate.  Every run makes the same number of
steps at the method's defaults, on seed 0.  Prints the training loss at the end, and CPU seconds per step.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence

import torch
from defaults import TASKS, batches, training_loss, workload_of

import curvlab
from curvlab.model.readers.bare import BareReader
from curvlab.model.readers.embedding import EmbeddingReader
from curvlab.model.readers.norm import NormReader
from curvlab.model.readers.shipped import SHIPPED

EMBEDDINGS, NORMS = (EmbeddingReader,), (NormReader, BareReader)

#: what is left to the fallback
WITHOUT = {
    "nothing": (),
    "norms": NORMS,
    "embeddings": EMBEDDINGS,
    "both": (*EMBEDDINGS, *NORMS),
}


def trained(task: str, method: str, without: tuple[type, ...], steps: int) -> tuple[float, float]:
    """The training loss after some steps, and the CPU seconds of one."""
    work = workload_of(TASKS[task], 0)
    readers = tuple(r for r in SHIPPED if not isinstance(r, without))
    optimizer = curvlab.optimizer(method, work.model, readers=readers)
    begun = time.process_time()
    for x, y in itertools.islice(batches(work, TASKS[task].batch_size, 0), steps):
        optimizer.step(curvlab.objective(work.model, work.loss, x, y))
    return training_loss(work), (time.process_time() - begun) / steps


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["character-gpt", "vit"])
    parser.add_argument("--methods", nargs="+", default=["kfac", "singd"])
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| task | method | by the fallback | training loss | s a step |\n| --- | --- | --- | --: | --: |")
    for task, method, (words, without) in itertools.product(asked.tasks, asked.methods, WITHOUT.items()):
        loss, seconds = trained(task, method, without, asked.steps)
        print(f"| {task} | `{method}` | {words} | {loss:.3f} | {seconds:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
