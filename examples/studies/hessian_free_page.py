"""The page of the study of Hessian-free optimization: tables of what it took to reach plain HF's loss."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: columns of a point of a run
SECONDS, EXAMPLES, PRODUCTS, PRODUCT_EXAMPLES, LOSS = range(5)

#: what a table says of each entrant; the last two are speed-ups over plain HF
HEADS = (
    "seconds",
    "gradient examples",
    "products",
    "product-examples",
    "plain's seconds ÷",
    "plain's product-examples ÷",
)

#: by entrant and seed
Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]


def reached(run: Mapping[str, Any], column: int) -> float:
    """What a run had spent when its training loss was first at the target: infinite if it never was.

    On the line between two looks, in the logarithm of the loss.
    """
    target, points = run["target"], run["points"]
    for before, after in itertools.pairwise(points):
        if after[LOSS] <= target:
            span = math.log(before[LOSS]) - math.log(after[LOSS])
            part = (math.log(before[LOSS]) - math.log(target)) / span if span > 0 else 1.0
            return float(before[column] + part * (after[column] - before[column]))
    return math.inf


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, and least to greatest of the seeds."""
    middle = statistics.median(values)
    if not math.isfinite(middle):
        return "not reached"
    words = f"{middle:,.{digits}g}" if middle < 1000 else f"{middle:,.0f}"
    least, most = min(values), max(values)
    if len(values) == 1 or least == most:
        return words
    upper = f"{most:,.{digits}g}" if math.isfinite(most) else "∞"
    return f"{words} ({least:,.{digits}g} – {upper})" if most < 1000 or not math.isfinite(most) else words


def speedup(runs: Runs, name: str, column: int) -> str:
    """Plain HF's cost over an entrant's, seed by seed."""
    ratios = []
    for seed, other in runs[name].items():
        own = reached(other, column)
        ratios.append(runs["plain"][seed]["points"][-1][column] / own if math.isfinite(own) and own else 0.0)
    return f"{spread(ratios)}×" if any(ratios) else "–"


def table(runs: Runs) -> str:
    """One task: a row per entrant."""
    rows = [
        f"| | {' | '.join(HEADS)} |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in runs.items():
        cells = []
        for column in (SECONDS, EXAMPLES, PRODUCTS, PRODUCT_EXAMPLES):
            if name == "plain":
                values = [float(r["points"][-1][column]) for r in found.values()]
            else:
                values = [reached(r, column) for r in found.values()]
            cells.append("–" if not any(values) else spread(values))
        ratios = (
            ["1", "1"] if name == "plain" else [speedup(runs, name, c) for c in (SECONDS, PRODUCT_EXAMPLES)]
        )
        seeds = "" if len(found) == len(runs["plain"]) else f" (seeds: {len(found)})"
        rows.append(f"| {name}{seeds} | {' | '.join([*cells, *ratios])} |")
    return "\n".join(rows)


def ends(runs: Runs) -> str:
    """Where every entrant stood when it stopped: at the target, or at the end of the budget."""
    said = []
    for name, found in runs.items():
        losses = [r["points"][-1][LOSS] for r in found.values()]
        metrics = [r["metrics"] for r in found.values() if r["metrics"]]
        shown = {k: statistics.median(m[k] for m in metrics) for k in sorted(metrics[0])} if metrics else {}
        words = ", ".join(f"{k} {v:.4g}" for k, v in shown.items())
        said.append(f"| {name} | {spread(losses, 4)} | {words} |")
    return "\n".join(["| | training loss | held out |", "|---|--:|---|", *said])


def draw(path: Path, found: Mapping[str, Runs]) -> None:
    """Training loss over seconds, a panel per task; an entrant has one color, whatever the task and seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colors = {
        name: f"C{k}" for k, name in enumerate(dict.fromkeys(n for runs in found.values() for n in runs))
    }
    figure, panels = plt.subplots(1, len(found), figsize=(6.4 * len(found), 4.6), squeeze=False)
    for panel, (task, runs) in zip(panels[0], found.items(), strict=True):
        for name, seeds in runs.items():
            for j, run in enumerate(seeds.values()):
                curve = [p for p in run["points"] if p[SECONDS] > 0]
                label = None if j else name
                panel.plot(
                    [p[SECONDS] for p in curve], [p[LOSS] for p in curve], colors[name], label=label, lw=1.2
                )
        panel.set(
            xscale="log", yscale="log", xlabel="seconds of one thread", ylabel="training loss", title=task
        )
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(page: Path, found: Mapping[str, Runs], budgets: Mapping[str, float], options: str) -> None:
    """The page and its picture; ``options`` of the command that are not its defaults."""
    sections = []
    for task, runs in found.items():
        budget = f"Plain HF has {budgets[task]:,.0f} seconds. Seeds: {len(runs['plain'])}."
        took, stood = "What it took to reach the training loss that it then has:", "Where they stopped:"
        sections.append(f"## {task}\n\n{budget} {took}\n\n{table(runs)}\n\n{stood}\n\n{ends(runs)}")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(
        HEAD.format(picture=page.with_suffix(".png").name, options=options) + "\n\n".join(sections) + "\n"
    )
    draw(page.with_suffix(".png"), found)


HEAD = """# Hessian-free optimization: a preconditioner and growing samples

What the two ingredients of arXiv 1309.1508 save, each alone and both, over plain Hessian-free optimization,
and where `hf-gn`, first-order and quasi-Newton methods stand. Made by

    curvlab tasks prepare speech-frames --minutes 10 --to data/speech-10
    curvlab tasks prepare speech-frames --minutes 60 --to data/speech-60
    python examples/studies/hessian_free.py --runs runs/hessian-free \\
        --speech-10 data/speech-10 --speech-60 data/speech-60{options}

Plain: the gradient of all examples, products on a fixed-size sample of 3 % drawn anew in each step, no
preconditioner, at most 30 iterations; all else is `hf-gn`'s. The preconditioner of the paper is L-BFGS from a
multiple of the identity; `hf-gn` as it is starts it from KFAC, and solves in 5 iterations.
Seconds are CPU time of one thread. Cells are medians over seeds (least – greatest). The speech is synthetic
(espeak-ng); networks and sizes are those of the tasks' defaults. Sainath et al. 2013 (arXiv 1309.1508) report
about 1.5 times on 50 hours and over 2.3 times on 300 hours of recorded speech, in wall-clock time on a
cluster: another task, another machine.

![training loss over seconds]({picture})

"""
