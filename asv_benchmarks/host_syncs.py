"""How often a step makes the host wait for an accelerator, for every method at its defaults.

    python asv_benchmarks/host_syncs.py

Networks and cycles of steps: ``benchmarks.steps``.  Counted on the CPU, where an operation that a GPU would
have to finish first is an operation like any other.  Left out is what stays on the host with a GPU as well:
one comparison of torch's random state per step.  Tensors that ``lbfgs`` and ``hf-gn`` keep on the host count.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmarks.meters import host_syncs, quiet
from benchmarks.networks import NETWORKS
from benchmarks.steps import METHODS, stepper


def waits(method: str, network: str) -> float:
    """The mean of a step over a cycle of refreshes, after a first step that makes the state."""
    step, _ = stepper(method, network)
    step()
    steps = METHODS[method]

    def several() -> None:
        for _ in range(steps):
            step()

    return host_syncs(several, steps) - 1.0


def main() -> None:
    """Print a table for docs/performance.md."""
    quiet()
    print(f"| method | {' | '.join(NETWORKS)} |\n|---|{'--:|' * len(NETWORKS)}")
    for method in METHODS:
        numbers = (f"{waits(method, network):.1f}" for network in NETWORKS)
        print(f"| `{method}` | {' | '.join(numbers)} |", flush=True)


if __name__ == "__main__":
    main()
