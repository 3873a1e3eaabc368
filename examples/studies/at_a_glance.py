"""The picture of the README: two methods and AdamW at equal CPU time on Fashion-MNIST.

    python examples/studies/at_a_glance.py           # train, about 15 minutes on one core
    python examples/studies/at_a_glance.py --draw    # draw again from the committed numbers

AdamW and its rival train in turns in one process, float32, one thread.  In each turn AdamW takes a fixed
number of steps, and the rival takes steps until it has used as much CPU time; evaluations are not counted.
So a busy machine slows both.  Writes ``at-a-glance.json``, ``.md`` and ``.svg`` in ``docs/studies``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from hessian_free import ENTRANTS, Spent, stepper, training_loss
from progress import BASELINE, RIVALS
from training import ADAMW, NETS, ROOT, quiet

from curvlab.tasks.fashion_autoencoder import FashionAutoencoder
from curvlab.tasks.supervised import SupervisedWorkload

PAGE = ROOT / "docs" / "studies" / "at-a-glance.md"
TURNS = 20
#: training examples that the autoencoder's loss is taken on
MEASURED = 10_000
#: (CPU time in steps of AdamW, training loss), in the order of time
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Trainee:
    """A network in training: a function that takes one step, and one that gives its training loss."""

    step: Callable[[], object]
    loss: Callable[[], float]


@dataclass(frozen=True)
class Race:
    """AdamW and a rival on one network."""

    title: str
    rival: str
    settings: str  #: of the rival and of AdamW, as the page says them
    steps: int  #: of AdamW, in all
    start: Callable[[str, int], Trainee]
    limits: tuple[float, float]  #: of the axis of the loss
    ticks: Sequence[float]
    seeds: Sequence[int]


def mlp(name: str, seed: int) -> Trainee:
    """The MLP under AdamW or ``singd`` with blocks of 64, at the best rates of the study of structures."""
    net = NETS["mlp"]
    found = BASELINE if name == ADAMW else next(r for r in RIVALS["mlp"] if r.contestant.short == name)
    model, batches = net.model(seed), net.batches(seed)
    train = found.at(1e-3).start(model, net, seed)
    return Trainee(lambda: train(*next(batches)), lambda: net.evaluate(model, "train")[0])


def autoencoder(name: str, seed: int) -> Trainee:
    """The deep autoencoder under AdamW or ``hf-gn``, as in the study of Hessian-free optimization."""
    torch.manual_seed(seed)
    task = FashionAutoencoder()
    workload = task.workload(task.model(), dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(workload, SupervisedWorkload)
    step = stepper(next(e for e in ENTRANTS if e.name == name), workload, task, seed)
    rows = torch.randperm(workload.size, generator=torch.Generator().manual_seed(0))[:MEASURED]
    return Trainee(partial(step, Spent()), partial(training_loss, workload, rows))


RACES = {
    "mlp": Race(
        "MLP 784-512-512-512-10",
        "blocks of 64",
        "`singd` with `structure = { use = \"block-diagonal\", size = 64 }`, rate 1e-3 and "
        "`norm_constraint = 1e-3`; AdamW at rate 1e-3. Both rates are the best of four "
        "([study](structures.md)). The loss is that of all training images.",
        2500,
        mlp,
        (0.07, 0.8),
        (0.1, 0.2, 0.4, 0.8),
        (0, 1, 2),
    ),
    "autoencoder": Race(
        "Deep autoencoder 784-1000-500-250-30, mirrored",
        "hf-gn",
        f"`hf-gn` at its defaults; AdamW at rate 1e-3, the best of four ([study](structures.md)). "
        f"The loss, summed over pixels, is that of {MEASURED:,} training images.",
        500,
        autoencoder,
        (212, 340),
        (220, 240, 260, 280, 320),
        (0, 1, 2),
    ),
}  # fmt: skip
#: what the picture and the tables call a rival
NAMES = {"blocks of 64": "singd, blocks of 64", "hf-gn": "hf-gn", ADAMW: "AdamW"}


def timed(step: Callable[[], object]) -> float:
    """CPU seconds of one step."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


def race(found: Race, seed: int) -> dict[str, Points]:
    """AdamW and its rival in turns; a point for each turn."""
    names = (ADAMW, found.rival)
    trainees = {name: found.start(name, seed) for name in names}
    points: dict[str, Points] = {name: [(0.0, round(t.loss(), 4))] for name, t in trainees.items()}
    turn, adamw, rival = found.steps // TURNS, 0.0, 0.0
    for k in range(1, TURNS + 1):
        adamw += sum(timed(trainees[ADAMW].step) for _ in range(turn))
        while rival < adamw:
            rival += timed(trainees[found.rival].step)
        for name, seconds in zip(names, (adamw, rival), strict=True):
            points[name].append((round(seconds / adamw * turn * k, 1), round(trainees[name].loss(), 4)))
    print(
        f"{found.title}, seed {seed}: {adamw:.0f} s, {points[ADAMW][-1]}, {points[found.rival][-1]}",
        flush=True,
    )
    return points


def reached(points: Points, target: float) -> float:
    """The time at which the loss is first at ``target``, on the line between two points in its logarithm."""
    for (t0, a), (t1, b) in itertools.pairwise(points):
        if b <= target:
            return t0 + (t1 - t0) * math.log(a / target) / math.log(a / b)
    return math.inf


def at(points: Points, time: float) -> float:
    """The loss at a time, on the same line; a last step may end a little later."""
    for (t0, a), (t1, b) in itertools.pairwise(points):
        if time <= t1:
            return a * (b / a) ** ((time - t0) / (t1 - t0))
    return math.nan


def spread(values: Sequence[float], digits: str) -> str:
    """Median (least – greatest)."""
    return f"{statistics.median(values):{digits}} ({min(values):{digits}} – {max(values):{digits}})"


def section(found: Race, runs: dict[str, list[Points]]) -> str:
    """The table of one network: medians over seeds, and their range."""
    digits = ".4f" if found.limits[1] < 10 else ".1f"
    ends = {name: [at(points, found.steps) for points in runs[name]] for name in (ADAMW, found.rival)}
    times = [reached(p, end) for p, end in zip(runs[found.rival], ends[ADAMW], strict=True)]
    rows = [
        f"| {NAMES[name]} | {spread(end, digits)} | {spread(took, ',.0f')} |"
        for (name, end), took in zip(ends.items(), ([float(found.steps)] * len(times), times), strict=True)
    ]
    return "\n".join([
        f"## {found.title}",
        "",
        f"{found.settings} Both have the CPU time of {found.steps:,} steps of AdamW. "
        f"Seeds: {len(found.seeds)}.",
        "",
        "| | training loss at the end | time to AdamW's loss at the end, in AdamW steps |",
        "|---|--:|--:|",
        *rows,
    ])  # fmt: skip


def page(runs: dict[str, dict[str, list[Points]]]) -> str:
    """The page of the study."""
    body = "\n\n".join(section(found, runs[name]) for name, found in RACES.items())
    return f"""# Two results at a glance

AdamW (`torch.optim.AdamW`) and a rival train the same network on Fashion-MNIST in turns, in one process and
one thread, float32. In each turn both use the same CPU time; evaluations are not counted. Cells are medians
over seeds (least – greatest). The numbers of each turn are in `at-a-glance.json`.

Measured at the defaults before [grafting and relative damping](../decisions/0006-step-lengths.md).

![Training loss by CPU time](at-a-glance.svg)

{body}

```
python examples/studies/at_a_glance.py
python examples/studies/at_a_glance.py --draw
```
"""


def picture(runs: dict[str, dict[str, list[Points]]], path: Path) -> None:
    """Training loss by CPU time, a panel for each network: the median over seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "curvlab", "font.size": 11})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    figure, panels = plt.subplots(1, len(RACES), figsize=(9.5, 3.6), layout="constrained")
    for panel, (key, found) in zip(panels, RACES.items(), strict=True):
        for name, color in ((ADAMW, "tab:orange"), (found.rival, "tab:blue")):
            turns = list(zip(*runs[key][name], strict=True))[1:]
            mean = [statistics.fmean(t for t, _ in turn) for turn in turns]
            losses = [[loss for _, loss in turn] for turn in turns]
            panel.plot(mean, [statistics.median(v) for v in losses], color=color, lw=2, label=NAMES[name])
            panel.fill_between(
                mean, [min(v) for v in losses], [max(v) for v in losses], color=color, alpha=0.2, lw=0
            )
        panel.set(title=found.title, xlabel="CPU time, in steps of AdamW", yscale="log", ylim=found.limits)
        panel.set_xlim(0, found.steps)
        panel.set_yticks(found.ticks)
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.minorticks_off()
        panel.title.set_fontsize(11)
        panel.grid(alpha=0.25)
        panel.legend(frameon=False)
    panels[0].set_ylabel("training loss")
    figure.savefig(path, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, unless only the picture is asked for; write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draw", action="store_true", help="use the numbers in the JSON file; train nothing")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args(argv)
    data = asked.page.with_suffix(".json")
    if not asked.draw:
        quiet()
        torch.set_num_threads(1)
        made: dict[str, dict[str, list[Points]]] = {}
        for key, seed in ((key, seed) for key, found in RACES.items() for seed in found.seeds):
            for name, points in race(RACES[key], seed).items():
                made.setdefault(key, {}).setdefault(name, []).append(points)
            data.write_text(json.dumps(made, separators=(",", ":")) + "\n")
    runs = json.loads(data.read_text())
    asked.page.write_text(page(runs))
    picture(runs, asked.page.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
