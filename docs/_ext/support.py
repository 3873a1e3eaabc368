"""The support matrix: what goes together, found by building it and taking a step.

    python docs/_ext/support.py            writes docs/support-matrix.md
    python docs/_ext/support.py --check    exit status 1 if the page says something else

Every combination of layer, labels, structure and precision is built under the two methods that take a
structure each in its way, ``kfac`` (which needs a Gram) and ``singd`` (a Group), and takes one step on
random data.
"""

from __future__ import annotations

import itertools
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from listings import OURS, table
from loss_support import by_loss
from torch import Tensor, nn

import curvlab
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import ConfigError, CurvlabError
from curvlab.protocols.needs import Labels
from curvlab.registry.loader import installed

PAGE = Path(__file__).resolve().parents[1] / "support-matrix.md"
YES, NO = "●", "–"

#: the end of a reason that names the structure, which its row does
OF_ONE = re.compile(r", and \w+ is not one$")


class Own(nn.Module):
    """A model with a parameter that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 3]``."""
        return x * self.scale


class Recurrent(nn.Module):
    """The last output of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, s, 4]`` to ``[n, 3]``."""
        found: Tensor = self.lstm(x)[0][:, -1]
        return found


class Attending(nn.Module):
    """The mean output of self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, s, 4]`` to ``[n, 4]``."""
        found: Tensor = self.attention(x, x, x, need_weights=False)[0].mean(1)
        return found


class Mean(nn.Module):
    """Over all axes but the first and the one after it."""

    def forward(self, x: Tensor) -> Tensor:
        """``[n, c, *]`` to ``[n, c]``."""
        return x.flatten(2).mean(-1)


class Positions(nn.Module):
    """Mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        """``[n, s, c]`` to ``[n, c]``."""
        return x.mean(1)


@dataclass(frozen=True)
class Case:
    """A model around one kind of layer, and the shape of its input without the batch."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: bool = False

    def inputs(self) -> Tensor:
        """Six examples."""
        if self.tokens:
            return torch.randint(0, 5, (6, *self.shape))
        return torch.randn(6, *self.shape)


#: layers with a reader: their statistics are what every method of layers lives on
LAYERS: Mapping[str, Case] = {
    "`nn.Linear`": Case(lambda: nn.Linear(4, 3), (4,)),
    "`nn.Linear` over positions": Case(lambda: nn.Sequential(nn.Linear(4, 3), Positions()), (5, 4)),
    "`nn.Conv1d`": Case(lambda: nn.Sequential(nn.Conv1d(2, 3, 3), Mean()), (2, 6)),
    "`nn.Conv2d`": Case(lambda: nn.Sequential(nn.Conv2d(2, 3, 2, stride=2), Mean()), (2, 4, 4)),
    "`nn.Conv2d`, grouped": Case(lambda: nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), Mean()), (2, 3, 3)),
    "`nn.Conv3d`": Case(lambda: nn.Sequential(nn.Conv3d(1, 3, 2), Mean()), (1, 3, 3, 3)),
}

#: everything else that a model is likely to hold
OTHERS: Mapping[str, Case] = {
    "`nn.ConvTranspose2d`": Case(lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2), Mean()), (2, 3, 3)),
    "`nn.Embedding`": Case(lambda: nn.Sequential(nn.Embedding(5, 3), Positions()), (4,), tokens=True),
    "`nn.LayerNorm`": Case(lambda: nn.LayerNorm(4), (4,)),
    "`nn.BatchNorm1d`": Case(lambda: nn.BatchNorm1d(4), (4,)),
    "`nn.PReLU`": Case(nn.PReLU, (3,)),
    "`nn.LSTM`": Case(Recurrent, (4, 4)),
    "`nn.MultiheadAttention`": Case(Attending, (4, 4)),
    "a parameter of the model's own": Case(Own, (3,)),
}

#: where a method takes a structure, and the labels that make sense of it
TAKES: Mapping[str, tuple[str, ...]] = {
    "kfac": ("preconditioner.estimator.A", "preconditioner.estimator.B"),
    "singd": ("preconditioner.K", "preconditioner.C"),
}


@dataclass(frozen=True)
class Outcome:
    """One combination, and why it is refused; empty if it is not."""

    method: str
    layer: str
    labels: str
    structure: str
    precision: str
    refusal: str


def outcomes() -> Iterator[Outcome]:
    """Every combination."""
    structures, precisions = (
        [e.name for e in installed().parts(kind) if OURS.fullmatch(e.distribution)]
        for kind in ("structure", "precision")
    )
    for method, layer, labels, structure, precision in itertools.product(
        TAKES, LAYERS, Labels, structures, precisions
    ):
        settings = {place: {"use": structure} for place in TAKES[method]}
        refusal = attempt(method, LAYERS[layer], precision, settings, labels=str(labels))
        yield Outcome(method, layer, str(labels), structure, precision, refusal)


def attempt(method: str, case: Case, precision: str, settings: Mapping[str, Any], **knobs: Any) -> str:
    """Build it and take a step; why it is refused, or nothing.

    Raises ``AssertionError`` if it is not refused and does not train.
    """
    torch.manual_seed(0)
    dtype = {"float64": torch.float64}.get(precision, torch.float32)
    model, x = case.model().to(dtype), case.inputs()
    x = x if case.tokens else x.to(dtype)
    y = torch.zeros(6, dtype=torch.long)
    before = [p.detach().clone() for p in model.parameters()]
    try:
        optimizer = curvlab.optimizer(method, model, settings=dict(settings), precision=precision, **knobs)
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    except ConfigError as error:
        return error.faults[0].message
    for p in model.parameters():
        assert bool(torch.isfinite(p).all()), (method, settings, knobs)
    moved = any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert moved, (method, settings, knobs)
    return ""


def treatment(method: str, case: Case) -> tuple[str, ...]:
    """How a method treats a model's parameters: who trains them, and why it is not the method itself."""
    torch.manual_seed(0)
    try:
        optimizer: CurvatureOptimizer = curvlab.optimizer(method, case.model())
        return tuple(row.reason for row in optimizer.coverage())
    except CurvlabError as error:
        return (str(error),)


def by_structure(found: list[Outcome], method: str, notes: dict[str, int]) -> str:
    """A table of structures and labels for one method."""
    cells: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for o in found:
        if o.method == method:
            cells[o.structure, o.labels].append(o)
    rows = []
    for structure in dict.fromkeys(s for s, _ in cells):
        rows.append((f"`{structure}`", *(_cell(cells[structure, str(k)], notes) for k in Labels)))
    return table(("structure", *(f"`{k}`" for k in Labels)), rows)


def by_method() -> str:
    """A table of layers and methods: who trains what."""
    methods = [e.name for e in installed().method_entries() if OURS.fullmatch(e.distribution)]
    cases = {**LAYERS, **OTHERS}
    rows = []
    for layer, case in cases.items():
        cells = []
        for method in methods:
            reasons = treatment(method, case)
            own = sum(not r for r in reasons)
            cells.append(YES if own == len(reasons) else NO if own == 0 else f"{own}/{len(reasons)}")
        rows.append((layer, *cells))
    return table(("layer", *(f"`{m}`" for m in methods)), rows)


def _cell(found: list[Outcome], notes: dict[str, int]) -> str:
    refused = [o for o in found if o.refusal]
    if not refused:
        return YES
    reasons = [OF_ONE.sub(", and this one is not", o.refusal) for o in refused]
    marks = dict.fromkeys(notes.setdefault(reason, len(notes) + 1) for reason in reasons)
    text = ", ".join(str(m) for m in marks)
    if len(refused) == len(found):
        return f"{NO} ({text})"
    where = ", ".join(dict.fromkeys(f"{o.layer} in {o.precision}" for o in refused))
    return f"{YES} but {where} ({text})"


def page() -> str:
    """The whole page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # narrow structures at dimension 3 have much to say
        found, layers = list(outcomes()), by_method()
    notes: dict[str, int] = {}
    refused = sum(bool(o.refusal) for o in found)
    return TEXT.format(
        yes=YES,
        no=NO,
        total=len(found),
        trained=len(found) - refused,
        refused=refused,
        read="; ".join(LAYERS),
        precisions=", ".join(f"`{p}`" for p in dict.fromkeys(o.precision for o in found)),
        kfac=by_structure(found, "kfac", notes),
        singd=by_structure(found, "singd", notes),
        reasons="\n".join(f"{k}. {message}" for message, k in notes.items()),
        layers=layers,
        losses=by_loss(),
    )


TEXT = """# Support matrix

Made by `python docs/_ext/support.py` from what is registered; a test compares it with what the code does.

## Layer × labels × structure × precision

Of {total} combinations {trained} were built and took a step, and {refused} are refused before anything runs,
each with one of the reasons below. {yes} means every layer that has a reader ({read}) in every precision
({precisions}); {no} is refused, and the number says why.

Methods that invert their factors (`kfac`; `foof` has `labels = "none"`) need a structure that is a
[Gram](concepts/structure.md#gram):

{kfac}

Inverse-free methods (`singd`; `ingd` and `ikfac` alike) need a [Group](concepts/structure.md#group):

{singd}

{reasons}

`ekfac` takes what `kfac` takes, but for `labels = "none"`; `cg-fac` keeps rows instead of factors and takes
no structure; `shampoo` and `soap` take every Gram, `sirf-shampoo` every Group, and none of them knows labels.

## Layer × method

{yes}: trained by the method itself; {no}: by its fallback; 2/4: two of four parameters by the method itself.
Nothing is left out.

{layers}

## Loss × what is evaluated

{yes}: the loss gives it; Fisher: with the Fisher information in place of its Hessian; {no}: it is refused,
with the reason. [Losses](concepts/loss.md) says what each is.

{losses}
"""


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" in arguments:
        same = PAGE.read_text() == text
        print("the page says what the code does" if same else "the page is out of date: leave --check out")
        return 0 if same else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
