"""The page of the study on a GPU: what was measured, or that nothing was."""
# ruff: noqa: E501  # paragraphs of a page are one line each

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

COMMAND = """```
python examples/studies/gpu.py
```"""

NOTHING = f"""# On a GPU

**This study has not been run.** The machines that this project was developed on have no GPU, so these pages make no statement about speed or memory on one. Steps on a second device were tested on a simulated one (`tests/engine/test_other_device.py`): every method takes the same steps there as on the CPU, and mixes tensors of the two nowhere.

The study measures, within eight minutes on a machine with a CUDA device:

* every method in float32 and in bfloat16 on the GPU, against float32 on the CPU;
* the time and the peak memory of a step over those of `torch.optim.AdamW(fused=True)`, on a ResNet-18 and on a GPT of the size of GPT-2 small;
* `singd` beside `kfac` in bfloat16, where `kfac` has to factorize its curvature factors and `singd` multiplies only.

{COMMAND}

It replaces this page; `nox -s gpu` runs it, too. `python examples/studies/gpu.py --device cpu --tiny --precisions float32` tries its logic on the CPU in less than a minute and writes nothing.
"""


@dataclass(frozen=True)
class Agreement:
    """A method in a precision on the device: losses after a few steps there and on the CPU in float32.

    ``off`` is the largest relative difference of the losses of all steps; ``failure`` says why there are none.
    """

    method: str
    precision: str
    cpu: float = math.nan
    device: float = math.nan
    off: float = math.nan
    failure: str = ""


@dataclass(frozen=True)
class Cost:
    """Milliseconds and peak bytes of a step, and both over those of fused AdamW in the same dtype."""

    network: str
    method: str
    precision: str
    milliseconds: float = math.nan
    time: float = math.nan
    peak: float = math.nan
    memory: float = math.nan
    failure: str = ""


@dataclass(frozen=True)
class Training:
    """Mean loss of the last steps of a run on digits, in a precision."""

    method: str
    precision: str
    first: float = math.nan
    last: float = math.nan
    failure: str = ""


@dataclass
class Study:
    """Everything that was measured, where, and what there was no time for."""

    machine: str
    seconds: float = 0.0
    agreements: list[Agreement] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)


def written(study: Study | None) -> str:
    """The whole page; of no study, that there was none."""
    if study is None:
        return NOTHING
    parts = [
        "# On a GPU",
        f"{study.machine}. The study took {study.seconds:.0f} seconds.",
        COMMAND,
        "## Against the CPU",
        "A small convolutional network, random data, ten steps at the defaults. Losses after the last step: on the CPU in float32, and on the device in the precision of the row; and the largest relative difference over all steps.",
        _table(
            ("method", "precision", "CPU", "device", "largest difference"), map(_agreement, study.agreements)
        ),
        "## The cost of a step",
        "Wall time of whole cycles of refreshes, the median of up to five, and the most memory that is allocated meanwhile, model and batches included. Ratios are to `torch.optim.AdamW(fused=True)` on a model of the same dtype.",
    ]
    for name, title in study.titles.items():
        rows = [_cost(c) for c in study.costs if c.network == name]
        head = ("method", "precision", "ms", "time ÷ AdamW", "MiB", "memory ÷ AdamW")
        parts += [f"### {title[:1].upper()}{title[1:]}", _table(head, rows)]
    parts += [
        "## SINGD and KFAC",
        "The digits of scikit-learn, an MLP 64-64-10, batch 128, at the defaults; the mean loss of the first and of the last ten steps.",
        _table(("method", "precision", "first", "last"), map(_training, study.trainings)),
    ]
    if study.left_out:
        parts += ["## Left out", "There was no time for " + ", ".join(study.left_out) + "."]
    return "\n\n".join(parts) + "\n"


def _agreement(a: Agreement) -> Sequence[str]:
    if a.failure:
        return a.method, a.precision, _number(a.cpu), a.failure, "–"
    return a.method, a.precision, _number(a.cpu), _number(a.device), f"{a.off:.1e}"


def _cost(c: Cost) -> Sequence[str]:
    if c.failure:
        return c.method, c.precision, c.failure, "–", "–", "–"
    mebibytes = _number(c.peak / 2**20)
    return c.method, c.precision, _number(c.milliseconds), _number(c.time), mebibytes, _number(c.memory)


def _training(t: Training) -> Sequence[str]:
    return t.method, t.precision, _number(t.first), t.failure or _number(t.last)


def _table(head: Sequence[str], rows: object) -> str:
    lines = [head, ["---", "---", *["--:"] * (len(head) - 2)], *list(rows)]  # type: ignore[call-overload]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(x: float) -> str:
    return "–" if not math.isfinite(x) else f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"
