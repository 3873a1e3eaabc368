"""What a step of each method costs and what it holds, at its defaults, as multiples of AdamW's.

    python asv_benchmarks/method_ratios.py [--only NAME ...] [--rounds 9]

Network, data and the way of timing: ``pairs``.  A timing is ten steps, a whole cycle of the default refresh.
Prints a table in Markdown: the median of the rounds' ratios, and bytes beside parameters and gradients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pairs import Pair, Ratio, interleaved, ours, quiet, torch_adamw

METHODS = (
    *("adamw", "kfac", "ekfac", "foof", "singd", "ingd", "ikfac"),
    *("shampoo", "soap", "kl-shampoo", "kl-soap"),
)
STEPS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", default=list(METHODS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args(argv)
    quiet()
    adamw = torch_adamw()
    pairs = {name: Pair(ours(name), adamw, STEPS, STEPS) for name in arguments.only}
    diagonal = ours("singd", structure={"use": "diagonal"})
    if "singd" in pairs:
        pairs["singd, diagonal"] = Pair(diagonal, adamw, STEPS, STEPS)
    found = interleaved(pairs, arguments.rounds)
    print("| method | step | state |\n|---|--:|--:|")
    for name, rounds in found.items():
        state = pairs[name].subject.state_bytes() / adamw.state_bytes()
        print(f"| `{name}` | {Ratio.of(rounds).median:.2f} | {state:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
