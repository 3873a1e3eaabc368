"""What each structure costs and brings: bytes, step time, progress.  Fashion-MNIST MLP, float32.

    python examples/studies/structures.py --runs runs/structures
    python examples/studies/structures.py --runs runs/structures --progress mlp          # and autoencoder

The first trains every structure under ``singd``, and INGD, IKFAC, ``kfac`` and ``torch.optim.AdamW``, at
their defaults, from three seeds, and times a step of each beside AdamW's and ``kfac``'s.  The second lets
settings of SINGD (``progress.RIVALS``, or a JSON list given by ``--rivals``) and AdamW meet at equal compute,
each at the best of its rates.  Each writes ``docs/studies/structures.md`` and ``.png`` of all that is in the
folder; what is there is not repeated (use a new folder when code changes; changed defaults are noticed).
About 40 minutes each on one core.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from progress import STEPS as BUDGETS
from progress import rivals_of, section
from timing import Cost, costs
from training import ADAMW, NETS, ROOT, Contestant, Ledger, families, quiet

from curvlab.errors import Diverged

PAGE = ROOT / "docs" / "studies" / "structures.md"
STEPS, EVERY, SEEDS = 1200, 100, (0, 1, 2)
#: training examples that the training loss is taken on
MEASURED = 10_000
NET = NETS["mlp"]


def contestants() -> list[Contestant]:
    """The rows of the table."""
    return [
        Contestant("torch.optim.AdamW", ADAMW, {"lr": 1e-3}),
        Contestant("kfac", "kfac"),
        Contestant("ikfac", "ikfac"),
        Contestant("ingd", "ingd"),
        *(Contestant(f"singd, {f}", "singd", {"structure": f}) for f in families()),
    ]


@dataclass(frozen=True)
class Curve:
    """A contestant: what a step costs and, for each seed, (step, training loss, test accuracy) on its way."""

    name: str
    cost: Cost
    points: Sequence[Sequence[tuple[float, float, float]]]

    def at(self, step: float, column: int) -> list[float]:
        """Loss (1) or accuracy (2) of each seed at a step, on the line between two evaluations."""
        return [between(points, step, column) for points in self.points]


def between(points: Sequence[tuple[float, float, float]], step: float, column: int) -> float:
    """The value at ``step``; not a number beyond the last evaluation."""
    for a, b in itertools.pairwise(points):
        if a[0] <= step <= b[0]:
            share = (step - a[0]) / (b[0] - a[0])
            return (1 - share) * a[column] + share * b[column]
    return math.nan


def train(c: Contestant, seed: int, steps: int, every: int) -> dict[str, Any]:
    """One run, evaluated every so many steps; it ends early where the method gives up."""
    model = NET.model(seed)
    step, batches = c.start(model, NET, seed), NET.batches(seed)
    points = []
    for k in range(steps + 1):
        if k % every == 0:
            loss, _ = NET.evaluate(model, "train", MEASURED)
            points.append((k, loss, NET.evaluate(model, "t10k")[1]))
        try:
            step(*next(batches))
        except Diverged:
            break
    return {"points": points}


def curves(ledger: Ledger, found: Sequence[Contestant], arguments: argparse.Namespace) -> list[Curve]:
    """Time and train what is missing."""
    measured = costs(ledger, "mlp", found, arguments.rounds)
    made = []
    for c in found:
        cost, every = measured[c.name], arguments.every
        needed = max(arguments.steps, arguments.steps / cost.adamw)
        steps = every * math.ceil(needed / every)
        points = []
        for seed in arguments.seeds:
            key = c.key(study="structures", seed=seed, steps=steps, every=every)
            points.append(ledger.get(key, partial(train, c, seed, steps, every))["points"])
        made.append(Curve(c.name, cost, points))
        print(
            f"{c.name}: {spread(made[-1].at(arguments.steps, 1))} after {arguments.steps} steps", flush=True
        )
    return made


def spread(values: Sequence[float]) -> str:
    """Mean ± half the range; "gave up" if a run did, or came to numbers that are none."""
    if any(math.isnan(v) for v in values):
        return "gave up"
    digits = ".3f" if max(values) < 100 else ".1e"
    return f"{statistics.fmean(values):{digits}} ± {(max(values) - min(values)) / 2:{digits}}"


def table(found: Sequence[Curve], steps: int) -> str:
    """One row per contestant."""
    rows = [
        "| | state ÷ AdamW's | step ÷ AdamW's | step ÷ `kfac`'s | loss, equal steps | accuracy, equal steps "
        "| loss, equal seconds | accuracy, equal seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for c in found:
        equal = [spread(c.at(at, column)) for at in (steps, steps / c.cost.adamw) for column in (1, 2)]
        cost = f"{c.cost.state:.3f} | {c.cost.adamw:.2f} | {c.cost.kfac:.2f}"
        rows.append(f"| {c.name} | {cost} | {' | '.join(equal)} |")
    return "\n".join(rows)


def picture(found: Sequence[Curve], steps: int, path: Path) -> None:
    """Training loss by steps, and by the time of as many AdamW steps: mean over seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    for k, c in enumerate(found):
        color = plt.get_cmap("tab20")(k % 20)
        xs = sorted(set.intersection(*({p[0] for p in points} for points in c.points)) - {0})
        ys = [c.at(x, 1) for x in xs]
        for axis, scale in zip(axes, (1.0, c.cost.adamw), strict=True):
            at = [x * scale for x in xs]
            axis.plot(at, [statistics.fmean(y) for y in ys], label=c.name, color=color, lw=1.5)
            axis.fill_between(at, [min(y) for y in ys], [max(y) for y in ys], color=color, alpha=0.15, lw=0)
    for axis, words in zip(axes, ("steps", "time, in AdamW steps"), strict=True):
        axis.set(xlabel=words, yscale="log", xlim=(0, steps), ylim=(0.1, 3.0))
        axis.set_yticks((0.1, 0.2, 0.3, 0.5, 1.0, 2.0))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.2)
    axes[0].set_ylabel("training loss")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def overview(found: Sequence[Curve], steps: int) -> str:
    """The first section of the page."""
    return f"""MLP 784-512-512-512-10 on Fashion-MNIST, batch 128, float32, one thread, every method at its
default settings: AdamW at rate 1e-3; `kfac`, `singd` and its kin look at curvature every 10 steps. State is
bytes held beside parameters and gradients. Step times are medians of paired rounds in one process, process
CPU time, refreshes included. The training loss is that of the first {MEASURED:,} training examples, the
accuracy that of the test set. Both are shown after {steps:,} steps (equal steps) and after the time of
{steps:,} AdamW steps (equal seconds: steps times the measured ratio).
Mean of {len(found[0].points)} seeds ± half
their range.

{table(found, steps)}

![Training loss by steps and by time](structures.png)"""


def page(folder: Path) -> str:
    """The page of the study: the sections that are in the folder."""
    names = ("overview", *BUDGETS)
    body = "\n\n".join(p.read_text() for name in names if (p := folder / f"{name}.md").exists())
    return f"""# Structures: what they cost and what they bring

{body}

```
python examples/studies/structures.py --runs runs/structures
python examples/studies/structures.py --runs runs/structures --progress mlp
python examples/studies/structures.py --runs runs/structures --progress autoencoder
```
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Make what was asked for and is missing, and write the page of all there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("runs/structures"))
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows: structures and methods")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--every", type=int, default=EVERY, help="steps between evaluations")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--rounds", type=int, default=15, help="of timing")
    parser.add_argument("--progress", choices=BUDGETS, help="equal compute, each at the best of its rates")
    parser.add_argument("--adamw-steps", type=int, help="whose compute that is; default 2,500 or 500")
    parser.add_argument("--rivals", type=Path, help="JSON list of name, method, knobs, settings, rates")
    arguments = parser.parse_args(argv)
    quiet()
    ledger = Ledger(arguments.runs)
    for folder in (arguments.runs, arguments.page.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.progress:
        budget = arguments.adamw_steps or BUDGETS[arguments.progress]
        net = arguments.progress
        text = section(ledger, net, budget, rivals_of(arguments.rivals, net), arguments.rounds)
    else:
        asked = [c for c in contestants() if arguments.only is None or c.short in arguments.only]
        found = curves(ledger, asked, arguments)
        text = overview(found, arguments.steps)
        picture(found, arguments.steps, arguments.page.with_suffix(".png"))
    (arguments.runs / f"{arguments.progress or 'overview'}.md").write_text(text)
    arguments.page.write_text(page(arguments.runs))


if __name__ == "__main__":
    main()
