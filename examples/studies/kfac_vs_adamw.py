"""KFAC against AdamW on the Fashion-MNIST MLP: steps to the same training loss.

    python examples/studies/kfac_vs_adamw.py --runs runs/kfac-vs-adamw

Ten epochs of every setting below, constant rates, one seed for all; runs that exist are not repeated.
Writes ``docs/studies/kfac-fashion-mnist.md`` and ``.png``.  About 40 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import curvlab

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "studies" / "kfac-fashion-mnist.md"
EPOCHS, EVERY = 10, 134

#: rates of each method; kfac's damping goes with its rate, as lr/λ is its rate where nothing is curved
SETTINGS: dict[str, list[dict[str, float]]] = {
    "adamw": [{"lr": lr} for lr in (1e-4, 3e-4, 5e-4, 1e-3, 2e-3)],
    "kfac": [
        {"lr": 1e-3, "damping": 3e-3},
        {"lr": 1e-3, "damping": 1e-2},
        {"lr": 3e-3, "damping": 1e-2},
        {"lr": 1e-2, "damping": 3e-2},
    ],
}


@dataclass(frozen=True)
class Curve:
    """One run: its setting, and (step, training loss, test accuracy, seconds) at each evaluation."""

    method: str
    knobs: Mapping[str, float]
    points: Sequence[tuple[int, float, float, float]]

    @property
    def label(self) -> str:
        """The setting in words."""
        return ", ".join(f"{name} {value:g}" for name, value in self.knobs.items())

    @property
    def best(self) -> float:
        """The lowest training loss seen."""
        return min(p[1] for p in self.points)

    def steps_to(self, target: float) -> tuple[int, float] | None:
        """Steps and seconds at the first evaluation with training loss ≤ ``target``."""
        return next(((p[0], p[3]) for p in self.points if p[1] <= target), None)


def curve(method: str, knobs: Mapping[str, float], runs: Path) -> Curve:
    """Train one setting, or read the run of it that exists."""
    name = "-".join([method, *(f"{k}-{v:g}" for k, v in knobs.items())])
    done = [f for f in runs.glob(f"{name}-*/summary.json") if json.loads(f.read_text())["exit_code"] == 0]
    if not done:
        config: dict[str, Any] = {
            "run": {"name": name, "seed": 0, "epochs": EPOCHS, "eval_every": EVERY, "threads": 1},
            "task": {"use": "fashion-mnist", "train_metrics": True},
            "method": {"use": method, **knobs},
        }
        folder = Path(curvlab.train(config, out=runs).folder)
    else:
        folder = done[0].parent
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [e for e in lines if e["kind"] == "eval" and e["step"]]
    points = [(e["step"], e["train_loss"], e["val_accuracy"], e["seconds"]) for e in evals]
    return Curve(method, knobs, points)


def table(curves: Sequence[Curve], target: float) -> str:
    """One row per setting."""
    rows = [
        "| method | setting | steps to that loss | seconds to it | best training loss | best test accuracy |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for c in curves:
        found = c.steps_to(target)
        steps, seconds = ("–", "–") if found is None else (f"{found[0]:,}", f"{found[1]:.0f}")
        accuracy = max(p[2] for p in c.points)
        rows.append(f"| `{c.method}` | {c.label} | {steps} | {seconds} | {c.best:.4f} | {accuracy:.4f} |")
    return "\n".join(rows)


def page(curves: Sequence[Curve]) -> str:
    """The page of the study."""
    adamw = min((c for c in curves if c.method == "adamw"), key=lambda c: c.best)
    reached = [(found[0], c) for c in curves if c.method == "kfac" and (found := c.steps_to(adamw.best))]
    steps_adamw = adamw.steps_to(adamw.best)
    assert steps_adamw is not None
    if reached:
        steps, best = min(reached, key=lambda r: r[0])
        verdict = (
            f"`kfac` ({best.label}) is there after {steps:,} steps, "
            f"{steps / steps_adamw[0]:.2f} of AdamW's {steps_adamw[0]:,}."
        )
    else:
        verdict = "`kfac` does not reach it in ten epochs at any of its settings."
    return f"""# KFAC and AdamW on the Fashion-MNIST MLP

MLP 784-512-512-512-10, batch 128, float32, constant rates, ten epochs (4,688 steps), one seed, one
thread. The training loss is that of all 60,000 training images, evaluated every {EVERY} steps. `kfac`
refreshes its curvature every 10 steps.

AdamW's best training loss, at the best of its five rates, is {adamw.best:.4f} ({adamw.label}). {verdict}

{table(curves, adamw.best)}

![Training loss and test accuracy by steps](kfac-fashion-mnist.png)

Seconds are training time by the clock, evaluations not counted, on a machine that was not quiet:
`docs/performance.md` has paired figures.

```
python examples/studies/kfac_vs_adamw.py --runs runs/kfac-vs-adamw
```
"""


def picture(curves: Sequence[Curve], path: Path) -> None:
    """Training loss and test accuracy by steps; strong: each method's first to AdamW's best loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    colors = {"adamw": "tab:orange", "kfac": "tab:blue"}
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    target = min(c.best for c in curves if c.method == "adamw")

    def reached(c: Curve) -> tuple[float, float]:
        found = c.steps_to(target)
        return (float("inf") if found is None else found[0], c.best)

    best = {m: min((c for c in curves if c.method == m), key=reached) for m in colors}
    for c in curves:
        strong = c is best[c.method]
        style: dict[str, Any] = {"color": colors[c.method], "alpha": 0.25, "lw": 1}
        if strong:
            style.update(alpha=1.0, lw=2)
        label = f"{c.method} ({c.label})" if strong else None
        steps = [p[0] for p in c.points]
        axes[0].semilogy(steps, [p[1] for p in c.points], label=label, **style)
        axes[1].plot(steps, [p[2] for p in c.points], **style)
    axes[0].axhline(best["adamw"].best, color="gray", ls=":", lw=1)
    axes[0].set(xlabel="steps", ylabel="training loss", yticks=(0.05, 0.1, 0.2, 0.4, 0.8))
    axes[0].yaxis.set_major_formatter(ScalarFormatter())
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[1].set(xlabel="steps", ylabel="test accuracy", ylim=(0.80, 0.91))
    axes[0].legend()
    for axis in axes:
        axis.grid(alpha=0.2)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("runs/kfac-vs-adamw"))
    arguments = parser.parse_args()
    curves = [curve(method, knobs, arguments.runs) for method, found in SETTINGS.items() for knobs in found]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(curves))
    picture(curves, PAGE.with_suffix(".png"))
    print(table(curves, min(c.best for c in curves if c.method == "adamw")))


if __name__ == "__main__":
    main()
