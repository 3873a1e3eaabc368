"""The page of the study of models: its numbers as a file, and the tables made of them."""
# ruff: noqa: E501  # paragraphs of a page are one line each

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defaults_page import number, table
from model_data import MEASURED
from model_zoo import NETWORKS
from training import ADAMW

Run = Mapping[str, Any]

OURS = ("kfac", "singd")
#: the least share of a network's elements that a method should treat itself
SHARE = 0.95


@dataclass
class Study:
    """Runs by network; and by network and method what was treated in the latest run."""

    runs: dict[str, list[Run]] = field(default_factory=dict)
    coverage: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Study:
        """What the file holds; nothing if there is none."""
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def write(self, path: Path) -> None:
        """A line for each run and each network's coverage, so that changes show."""
        runs = _lines({name: _listed(runs) for name, runs in self.runs.items()})
        coverage = _lines({name: json.dumps(found) for name, found in self.coverage.items()})
        path.write_text(f'{{"runs": {runs}, "coverage": {coverage}}}\n')

    def add(self, network: str, run: Run, coverage: Mapping[str, Any]) -> None:
        """A run, in place of one of the same method, rate and seed."""
        same = [_key(run)]
        self.runs[network] = [r for r in self.runs.get(network, []) if _key(r) not in same] + [run]
        if coverage.get("elements"):
            self.coverage.setdefault(network, {})[run["method"]] = coverage

    def networks(self) -> list[str]:
        """Those with runs, in the order of the page."""
        return [name for name in NETWORKS if name in self.runs]

    def best(self, network: str, method: str) -> list[Run]:
        """The runs of a method, by seed, at the rate that is best for the first; empty if there are none."""
        own = [r for r in self.runs.get(network, []) if r["method"] == method]
        if not own:
            return []
        first = min(r["seed"] for r in own)
        rate = min((r for r in own if r["seed"] == first), key=lambda r: float(r["loss"]))["rate"]
        return [r for r in own if r["rate"] == rate]

    def share(self, network: str, method: str) -> float:
        """The part of the elements that a method treats itself; not a number if it was not run."""
        found = self.coverage.get(network, {}).get(method)
        return found["treated"] / found["elements"] if found else math.nan


def _key(run: Run) -> tuple[Any, ...]:
    return run["method"], run["rate"], run["seed"]


def _listed(runs: list[Run]) -> str:
    return "[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]"


def _lines(found: Mapping[str, str]) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {text}" for name, text in found.items()) + "\n}"


def median(runs: list[Run], name: str) -> float:
    """The median of one number, over seeds."""
    return statistics.median(float(run[name]) for run in runs)


def lapses(study: Study) -> list[str]:
    """What falls short: a share below ``SHARE``, a loss above AdamW's, a method that was not run."""
    found = []
    for name in study.networks():
        missing = [method for method in (ADAMW, *OURS) if not study.best(name, method)]
        found += [f"{name}: {method} was not run" for method in missing]
        for method in (m for m in OURS if m not in missing):
            if study.share(name, method) < SHARE:
                found.append(f"{name}: {method} treats {_percent(study.share(name, method))}")
            adamw = math.nan if ADAMW in missing else median(study.best(name, ADAMW), "loss")
            own = median(study.best(name, method), "loss")
            if own > adamw:
                found.append(f"{name}: {method} ends at {own:.4g}, AdamW at {adamw:.4g}")
    return found


def written(study: Study) -> str:
    """The whole page."""
    return f"""# Models

This page shows which parts of common networks `kfac` and `singd` treat themselves, and how both train them beside AdamW. The networks are those of transformers, torch_geometric and `torch.nn`, with random weights, two layers and width 64. ResNet-18 has a quarter of its channels.

## Loss after 200 steps

Each cell is the training loss at the end and the rate, the best of four by that loss with seed 0. A loss is the median over {_seeds(study)}, on {MEASURED:,} training examples, without dropout. "Treated" is the share of trained elements that a method treats itself; AdamW trains the others. "Step" is CPU time over that of AdamW's step.

{losses(study)}

Held-out data, in the same runs:

{held_out(study)}

## How to train them

All are trained by a plain loop, float32, one thread, constant rates. Methods are at their defaults, with `labels="data"` for `kfac`. Language models have a loss that is a mean over tokens, so they are trained with `reduction="mean-tokens"`.

```python
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import curvlab

config = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4
)
model = LlamaForCausalLM(config)
optimizer = curvlab.optimizer("singd", model, lr=3e-3, reduction="mean-tokens")

for _ in range(3):
    tokens = torch.randint(0, 64, (8, 32))
    optimizer.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()

for row in optimizer.coverage():
    print(row.parameter, row.treatment, row.reason)
```

## What AdamW trains

{remainder(study)}

## Data and settings

{settings(study)}

"Small letters to the text" removes capitals, punctuation and line breaks from 64 characters; the decoder writes them again. The tagger reads the letters of the whole text and gives each a class: capital or not, and the punctuation that follows. BERT sees images of 7 × 7 pixels in 16 levels, and finds the pixels that are hidden, each with probability 0.15 and the same in each epoch. The graph joins each of scikit-learn's digits with its eight nearest; a fifth of every class is held out.

The command writes this page and `models.json`, which holds every run:

```
OMP_NUM_THREADS=1 python examples/studies/models.py
OMP_NUM_THREADS=1 python examples/studies/models.py --networks gpt2 --methods singd
```

It needs `pip install -r requirements-dev.txt`, and Debian's packages `bible-kjv` and `dataset-fashion-mnist` or the same data in the folder `CURVLAB_DATA`. It exits with 1 if a method treats less than {100 * SHARE:.0f} % of a network or ends above AdamW.

## Limits

These are small networks in their first 200 steps, on one CPU thread. The table does not say how methods rank in a long run. Warm-up and decay of the rate are left out, for all three. The rate is chosen by the training loss. On the graph of digits all three methods fit the training nodes, and the held-out loss does not follow the training loss.

Next: [the support matrix](support-matrix.md), layer by layer, and [plain loops](concepts/plain-loop.md).
"""


def _seeds(study: Study) -> str:
    count = len({r["seed"] for runs in study.runs.values() for r in runs})
    return "one seed" if count == 1 else f"{count} seeds"


def losses(study: Study) -> str:
    """The shares, losses and times of every network."""
    rows = []
    for name in study.networks():
        adamw = study.best(name, ADAMW)
        cells = [NETWORKS[name].title]
        cells += [_percent(study.share(name, method)) for method in OURS]
        cells += [_loss(study.best(name, method), "loss") for method in (ADAMW, *OURS)]
        for method in OURS:
            own = study.best(name, method)
            cells.append(f"{median(own, 'seconds') / median(adamw, 'seconds'):.2f}" if own and adamw else "")
        rows.append(cells)
    head = ["", *(f"treated, `{m}`" for m in OURS), "AdamW", *(f"`{m}`" for m in OURS)]
    return table([*head, *(f"step, `{m}`" for m in OURS)], rows)


def held_out(study: Study) -> str:
    """The losses of the same runs on held-out data."""
    rows = [
        [
            NETWORKS[name].title,
            *(_loss(study.best(name, method), "held_out", rate=False) for method in (ADAMW, *OURS)),
        ]
        for name in study.networks()
    ]
    return table(["", "AdamW", *(f"`{m}`" for m in OURS)], rows)


def remainder(study: Study) -> str:
    """What a method does not treat itself, and why."""
    left: dict[tuple[str, str, str], list[str]] = {}
    for name in study.networks():
        for method, found in study.coverage.get(name, {}).items():
            for reason, count in sorted(found["others"].items(), key=lambda item: -item[1]):
                elements = f"{count:,} ({_percent(count / found['elements'])})"
                left.setdefault((NETWORKS[name].title, reason, elements), []).append(f"`{method}`")
    if not left:
        return "Nothing: both methods treat every parameter of these networks."
    rows = [[title, ", ".join(methods), reason, n] for (title, reason, n), methods in left.items()]
    head = ["", "methods", "reason", "elements"]
    return f"Each with the reason that `optimizer.coverage()` gives:\n\n{table(head, rows)}"


def settings(study: Study) -> str:
    """What every network learns, its batch, the rates of all three methods, and its size."""
    rows = []
    for name in study.networks():
        net = NETWORKS[name]
        sizes = [found["elements"] for found in study.coverage.get(name, {}).values()]
        rows.append([
            net.title,
            net.task,
            "the graph" if net.batch == 1 else str(net.batch),
            ", ".join(f"{rate:g}" for rate in sorted({r["rate"] for r in study.runs[name]})),
            f"{max(sizes, default=0):,}",
        ])  # fmt: skip
    return table(["", "learns", "batch", "rates", "elements"], rows)


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f} %"


def _loss(runs: list[Run], name: str, *, rate: bool = True) -> str:
    """The median loss, and the rate."""
    if not runs:
        return ""
    loss = median(runs, name)
    shown = number(loss) if loss >= 0.1 else f"{loss:.2g}"
    return shown + (f" (at {runs[0]['rate']:g})" if rate else "")
