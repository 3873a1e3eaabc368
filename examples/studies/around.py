"""Callbacks around methods, on Fashion-MNIST: SVD training, unification and pruning of blocks, AdaS.

    python examples/studies/around.py svd       # docs/studies/svd-training.md
    python examples/studies/around.py blocks    # docs/studies/block-admm.md
    python examples/studies/around.py adas      # docs/studies/adas.md

Each trains a convolutional network of 4, 8 and 16 channels and a hidden layer of 32 in float32, one thread,
batches of 256, and writes its page.  The rate falls to zero along a cosine, except that of SGD.  ``--epochs``
says how long, ``--channels`` and ``--hidden`` how large; ``--page`` where to.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import curvlab
from curvlab_compress.export import exported

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"svd": "svd-training.md", "blocks": "block-admm.md", "adas": "adas.md"}

#: training images of Fashion-MNIST
EXAMPLES = 60_000

#: rates of the study of AdaS: three around the paper's first rate, and that
RATES = (0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Result:
    """A run: its last accuracy on the test images, its best, CPU seconds, the model, and its events."""

    accuracy: float
    best: float
    seconds: float
    run: Any
    events: tuple[Mapping[str, Any], ...]

    def told(self, name: str) -> list[Mapping[str, Any]]:
        """Details of the events of this name."""
        return [event["detail"] for event in self.events if event["name"] == name]


@dataclass(frozen=True)
class Bench:
    """What every run of a study has in common."""

    task: Mapping[str, Any]
    epochs: int
    out: Path
    seed: int = 0

    def falling(self, method: str, lr: float = 3e-3) -> dict[str, Any]:
        """A method whose rate falls to zero along a cosine."""
        steps = max(self.epochs * EXAMPLES // int(self.task["batch_size"]), 1)
        return {"use": method, "lr": {"use": "cosine", "peak": lr, "steps": steps}}

    def trained(
        self, method: Mapping[str, Any], callbacks: Mapping[str, Any], task: Mapping[str, Any] | None = None
    ) -> Result:
        """A run, to its end."""
        begun = time.process_time()
        run = curvlab.train(
            {
                "run": {"epochs": self.epochs, "seed": self.seed, "threads": 1},
                "task": dict(task or self.task),
                "method": dict(method),
                "callbacks": dict(callbacks),
                "report": "quiet",
            },
            out=self.out,
        )
        lines = (run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        evaluated = [
            line["val_accuracy"]
            for line in map(json.loads, (run.folder / "metrics.jsonl").read_text("utf-8").splitlines())
            if line["kind"] == "eval"
        ]
        seconds = time.process_time() - begun
        return Result(evaluated[-1], max(evaluated), seconds, run, tuple(map(json.loads, lines)))


def svd(bench: Bench) -> str:
    """KFAC with and without SVD training: ranks, accuracy, orthogonality, and the exported network."""
    e = bench.epochs
    settings = {
        "orthogonality": 30.0,
        "sparsity": 0.1,
        "scale_rate": 10.0,
        "sparse_from": e // 6,
        "prune_after": max(e // 3, 1),
        "energy": 0.01,
        "keep": 0.5,
    }
    plain = bench.trained(bench.falling("kfac"), {})
    made = bench.trained(
        bench.falling("kfac"),
        {"svd": {"use": "svd-training", **settings}},
        {"use": "svd", "of": dict(bench.task)},
    )
    told, full = made.told("svd-ranks")[-1], made.told("svd-ranks")[0]["ranks"]
    model, x = made.run.model, made.run.workload.validation.inputs[:2000]
    with torch.no_grad():
        outputs = model(x)
        off = {
            form: float((exported(model, form)(x) - outputs).abs().max() / outputs.abs().max())  # type: ignore[arg-type]
            for form in ("dense", "low-rank")
        }
    small = sum(p.numel() for p in exported(model, "low-rank").parameters())
    large = sum(p.numel() for p in plain.run.model.parameters())
    about = (
        f"`kfac` on the small convnet of Fashion-MNIST, {e} epochs, one seed, with and without"
        " [SVD training](../reference/callback.md#svd-training) (channel split)."
        f" Settings: {_words(settings)}."
    )
    result = (
        f"The largest ‖UᵀU − I‖/r of any factor is {told['orthogonality']:.1e} at the end. Over 2,000 test"
        f" images, outputs of the exported network differ by at most {off['dense']:.1e} (dense) and"
        f" {off['low-rank']:.1e} (low rank) of the largest output from those of the trained one."
    )
    models = table(
        ("", "accuracy on the test images", "numbers in weights and biases", "CPU seconds"),
        [
            ("`kfac`", f"{plain.accuracy:.2%}", f"{large:,}", f"{plain.seconds:.0f}"),
            (
                "`kfac` with SVD training, exported at low rank",
                f"{made.accuracy:.2%}",
                f"{small:,}",
                f"{made.seconds:.0f}",
            ),
        ],
    )
    ranks = table(
        ("layer", "rank before", "rank after pruning"),
        [(f"`{n}`", str(r), str(told["ranks"][n])) for n, r in full.items()],
    )
    return "\n\n".join(["# SVD training", about, models, ranks, result])


def blocks(bench: Bench) -> str:
    """KFAC and AdamW with unified blocks: numbers stored, and accuracy."""
    settings = {
        "columns": 8,
        "ratio": 0.87,
        "among": "network",
        "rho": 0.02,
        "start_after": bench.epochs // 6,
        "every_steps": 47,  # a fifth of an epoch of batches of 256
        "harden_after": max(bench.epochs // 2, 1),
    }
    rows = []
    for method in ("kfac", "adamw"):
        for goal in ("none", "unify", "prune"):
            callback = {"use": "block-admm", "goal": goal, **settings}
            made = bench.trained(bench.falling(method), {} if goal == "none" else {"blocks": callback})
            numbers = f"{_magnitudes(made.run.model):,}", f"{made.accuracy:.2%}", f"{made.seconds:.0f}"
            rows.append((f"`{method}`", goal, *numbers))
    about = (
        f"The small convnet of Fashion-MNIST, {bench.epochs} epochs, one seed, with and without"
        f" [`block-admm`](../reference/callback.md#block-admm). Settings: {_words(settings)}."
    )
    counted = (
        "Distinct magnitudes are the different values of |w| in weights of convolutions and linear layers,"
        " each layer counted by itself; zero counts as none."
    )
    head = ("method", "goal", "distinct magnitudes", "accuracy on the test images", "CPU seconds")
    return "\n\n".join(["# Blocks of one magnitude", about, counted, table(head, rows)])


def adas(bench: Bench) -> str:
    """SGD at four fixed rates, and with AdaS at the paper's first rate."""
    runs: list[tuple[str, str, Result]] = []
    for lr in RATES:
        runs.append((f"{lr:g}", "no", bench.trained({"use": "sgd", "lr": lr, "momentum": 0.9}, {})))
    callback = {"use": "adas", "beta": 0.8, "initial": 0.03}
    made = bench.trained({"use": "sgd", "lr": 0.03, "momentum": 0.9}, {"adas": callback})
    runs.append(("0.03", "β = 0.8", made))
    about = (
        f"SGD with momentum 0.9 on the small convnet of Fashion-MNIST, {bench.epochs} epochs, one seed, at"
        " four fixed rates and with [AdaS](../reference/callback.md#adas). The paper trains for 250 epochs."
    )
    rates = table(
        ("`lr`", "AdaS", "best accuracy on the test images", "last accuracy", "CPU seconds"),
        [(lr, on, f"{r.best:.2%}", f"{r.accuracy:.2%}", f"{r.seconds:.0f}") for lr, on, r in runs],
    )
    layers = table(
        ("layer", "knowledge gain", "share of the rank", "rate"),
        [
            (f"`{n}`", f"{v['gain']:.3f}", f"{v['rank']:.2f}", f"{v['rate']:.2e}")
            for n, v in made.told("adas")[-1]["layers"].items()
        ],
    )
    return "\n\n".join(["# AdaS", about, rates, "At the end, with AdaS:", layers])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


STUDIES: Mapping[str, Callable[[Bench], str]] = {"svd": svd, "blocks": blocks, "adas": adas}
EPOCHS = {"svd": 6, "blocks": 6, "adas": 25}


def _magnitudes(model: nn.Module) -> int:
    """Different values of |w| that are not zero, over the weights of layers."""
    weights = [p.detach().abs() for p in model.parameters() if p.dim() > 1]
    return sum(len(w[w > 0].unique()) for w in weights)


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key} = {value}`" for key, value in settings.items())


def main(arguments: Sequence[str]) -> int:
    """Run a study and write its page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--channels", type=int, nargs=3, default=[4, 8, 16])
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--root", help="folder with Fashion-MNIST's files")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args(arguments)
    task: dict[str, Any] = {"use": "fashion-convnet", "channels": given.channels, "hidden": given.hidden}
    task |= {"batch_size": given.batch} | ({"root": given.root} if given.root else {})
    epochs = EPOCHS[given.study] if given.epochs is None else given.epochs
    with tempfile.TemporaryDirectory() as out:
        text = STUDIES[given.study](Bench(task, epochs, Path(out)))
    options = f" --epochs {given.epochs}" if given.epochs else ""
    text += f"\n\n```\npython examples/studies/around.py {given.study}{options}\n```\n"
    page = given.page or ROOT / "docs" / "studies" / PAGES[given.study]
    page.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
