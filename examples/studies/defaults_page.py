"""The page of the study of defaults: tables of all finished runs."""
# ruff: noqa: E501  # paragraphs of a page are one line each

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from training import ADAMW, Ledger

Run = Mapping[str, Any]

#: task -> what the page calls it
NAMES = {
    "mlp": "MLP, `fashion-mnist`",
    "autoencoder": "autoencoder, `fashion-autoencoder`",
    "convnet": "convnet, `fashion-convnet`",
    "vit": "ViT, `fashion-vit`",
    "character-gpt": "GPT, `character-gpt`",
}


def written(ledger: Ledger) -> str:
    """The whole page."""
    runs = ledger.entries()
    return f"""# Methods at their defaults

Five networks: the MLP 784-512-512-512-10, the deep autoencoder 784-1000-500-250-30 (loss summed over pixels), a convolutional network and a vision transformer on Fashion-MNIST, and a character-level transformer decoder on English text.
CPU, one thread, float32, constant rates. The training loss is that of the first 2,000 training examples at the end of a run.

## In the CPU time of AdamW steps

`torch.optim.AdamW` is shown at the best of the rates in parentheses, all others at their defaults. A step's cost is process CPU time, measured in turns with AdamW's. Training loss, and in parentheses the steps that fit.

```
OMP_NUM_THREADS=1 python examples/studies/defaults.py equal
OMP_NUM_THREADS=1 python examples/studies/defaults.py equal --tasks vit --adamw-steps 100 --rates 3e-4 1e-3 3e-3
```

{equal_time(runs)}

## Stability, and the scale of the loss

300 steps at the defaults, with the loss multiplied by 1, by 100 and by 0.01. Shown is the mean of the last ten batch losses, divided by the factor again. **Bold**: the run ended early, ended above where it began, or was at twice its first loss on the way.
A dot is a run that was not made. Batches are small, so that runs are noisy: {batches(runs)}.

```
OMP_NUM_THREADS=1 python examples/studies/defaults.py stable
OMP_NUM_THREADS=1 python examples/studies/defaults.py stable --scales 1 --methods adamw sgd muon sophia shampoo soap
```

{stability(runs)}

What the tables do not show: with λ = 3e-3 instead of 3e-2, `kfac` diverges on the MLP with batches of 64 (loss 845 after 60 steps). [The decision](../decisions/0006-step-lengths.md) says why.

## Rules of `grafting`

The same number of steps for every rule, seed 0; training loss at the end. `unit` and `none` have a step length of another size, so they are shown at the better of the rates 3e-4 and 1e-3, all others at the default, 3e-3.

```
OMP_NUM_THREADS=1 python examples/studies/defaults.py lengths --tasks mlp convnet --methods singd --steps 120
```

{rules(runs)}

A block of `o` rows and `i` columns holds, beside the method's own state, `o i` scalars for `adam`, `o + i` for `adafactor`, `o` for `rows`, 1 for `block` and none for `unit`, `gradient` and `none`.
"""


def of_kind(runs: Sequence[Run], kind: str) -> list[Run]:
    """Finished runs of one part of the study."""
    return [run for run in runs if run["key"].get("kind") == kind]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; numbers to the right."""
    if not rows:
        return "Not run yet."
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(x: float) -> str:
    """A loss: four digits, or three if it is above 10."""
    return "–" if not math.isfinite(x) else f"{x:.1f}" if abs(x) >= 10 else f"{x:.3f}"


def equal_time(runs: Sequence[Run]) -> str:
    """AdamW at its best rate and the methods, by task and seed."""
    found, rows = of_kind(runs, "equal"), []
    methods = sorted(
        {r["key"]["method"] for r in found} - {ADAMW}, key=lambda m: (m not in ("kfac", "singd"), m)
    )
    for task, name in NAMES.items():
        for budget, seed in sorted({_where(r) for r in found if r["key"]["task"] == task}):
            here = [r for r in found if r["key"]["task"] == task and _where(r) == (budget, seed)]
            adamw = [r for r in here if r["key"]["method"] == ADAMW]
            cells = [name, str(budget), str(seed)]
            if adamw:
                best = min(adamw, key=lambda r: float(r["found"]["loss"]))
                rates = ", ".join(f"{_rate(r):g}" for r in sorted(adamw, key=_rate))
                cells.append(f"{number(best['found']['loss'])} (at {_rate(best):g} of {rates})")
            else:
                cells.append("")
            for method in methods:
                own = [r for r in here if r["key"]["method"] == method]
                cells.append(f"{number(own[-1]['found']['loss'])} ({own[-1]['key']['steps']})" if own else "")
            rows.append(cells)
    return table(["", "AdamW steps", "seed", "AdamW", *(f"`{m}`" for m in methods)], rows)


def _where(run: Run) -> tuple[int, int]:
    return run["key"]["budget"], run["key"]["seed"]


def _rate(run: Run) -> float:
    return float(run["key"]["composed"][0][1])


def stability(runs: Sequence[Run]) -> str:
    """Where every run ended, by method and task, at each scale of the loss."""
    found, rows = of_kind(runs, "stable"), []
    tasks = [t for t in NAMES if any(r["key"]["task"] == t for r in found)]
    scales = sorted({r["key"]["scale"] for r in found}, key=lambda c: abs(math.log(c)))
    for method in dict.fromkeys(r["key"]["method"] for r in found):
        cells = [f"`{method}`"]
        for task in tasks:
            ends = []
            for scale in scales:
                own = [
                    r["found"]
                    for r in found
                    if (r["key"]["method"], r["key"]["task"], r["key"]["scale"]) == (method, task, scale)
                ]
                ends.append(" ".join(_end(f) for f in own) or "·")
            cells.append(" / ".join(ends))
        rows.append(cells)
    first = ["before", *(_first(found, task) for task in tasks)]
    return table(["", *(t for t in tasks)], [first, *rows] if rows else [])


def _first(found: Sequence[Run], task: str) -> str:
    return number(statistics.median(r["found"]["first"] for r in found if r["key"]["task"] == task))


def _end(found: Run) -> str:
    good = not found["failure"] and found["last"] < found["first"] and found["worst"] < 2 * found["first"]
    shown = "failed" if found["failure"] else number(found["last"])
    return shown if good else f"**{shown}**"


def batches(runs: Sequence[Run]) -> str:
    """The sizes of the batches, by task."""
    sizes = {r["key"]["task"]: r["key"]["batch"] for r in of_kind(runs, "stable")}
    return ", ".join(f"{task} {sizes[task]}" for task in NAMES if task in sizes) or "none yet"


def rules(runs: Sequence[Run]) -> str:
    """The best of a rule's rates, by task."""
    found, rows = of_kind(runs, "lengths"), []
    tasks = [t for t in NAMES if any(r["key"]["task"] == t for r in found)]
    rule_of = {id(r): r["key"]["rule"] for r in found}
    for method in dict.fromkeys(r["key"]["method"] for r in found):
        for rule in dict.fromkeys(rule_of.values()):
            own = [r for r in found if r["key"]["method"] == method and rule_of[id(r)] == rule]
            cells = []
            for task in tasks:
                losses = [float(r["found"]["loss"]) for r in own if r["key"]["task"] == task]
                cells.append(number(min(losses)) if losses else "")
            rows.append([f"`{method}`, {rule}", *cells])
    return table(["", *tasks], rows)
