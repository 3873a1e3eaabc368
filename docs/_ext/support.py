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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from callback_support import by_callback
from layer_kinds import LAYERS, OTHERS, Case
from listings import OURS, table
from loss_support import by_loss
from precision_support import by_precision, precisions
from torch import nn

import curvlab
from curvlab.engine.coverage import FROZEN
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import ConfigError, CurvlabError
from curvlab.protocols.needs import Labels
from curvlab.registry.loader import installed

PAGE = Path(__file__).resolve().parents[1] / "support-matrix.md"
YES, NO = "●", "–"

#: the end of a reason that names the structure, which its row does
OF_ONE = re.compile(r", and \w+ is not one$")


#: layers that tell other methods apart
SOME = (
    "`nn.ConvTranspose2d`",
    "`nn.Embedding`",
    "`nn.LayerNorm`",
    "`nn.BatchNorm1d`",
    "`nn.PReLU`",
    "`nn.LSTM`",
    "`nn.MultiheadAttention`",
)

#: methods that live on statistics of layers
METHODS = (
    "kfac", "ekfac", "foof", "cg-fac", "rs-kfac", "b-kfac", "b-r-kfac", "b-r-c-kfac",
    "kbfgs", "kbfgs-l", "singd", "ingd", "ikfac", "smw-ngd", "fngd",
)  # fmt: skip

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
    structures = [e.name for e in installed().parts("structure") if OURS.fullmatch(e.distribution)]
    for method, layer, labels, structure, precision in itertools.product(
        TAKES, LAYERS, Labels, structures, dict(precisions())
    ):
        settings = {place: {"use": structure} for place in TAKES[method]}
        refusal = attempt(method, LAYERS[layer], precision, settings, labels=str(labels))
        yield Outcome(method, layer, str(labels), structure, precision, refusal)


def attempt(method: str, case: Case, precision: str, settings: Mapping[str, Any], **knobs: Any) -> str:
    """Build it and take a step; why it is refused, or nothing.

    Raises ``AssertionError`` if it is not refused and does not train.
    """
    torch.manual_seed(0)
    dtype = dict(precisions())[precision]
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
    """Why each of a model's parameters is not trained by the method itself, after a step; empty if it is."""
    torch.manual_seed(0)
    model, x = case.model(), case.inputs()
    try:
        optimizer: CurvatureOptimizer = curvlab.optimizer(method, model)
        if method in METHODS:  # a step shows which uses of parameters explain their gradients
            optimizer.step(
                curvlab.objective(model, nn.CrossEntropyLoss(), x, torch.zeros(6, dtype=torch.long))
            )
        return tuple(row.reason for row in optimizer.coverage() if row.treatment != FROZEN)
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
    """A table of layers and all other methods: who trains what."""
    names = [e.name for e in installed().method_entries() if OURS.fullmatch(e.distribution)]
    methods = [name for name in names if name not in METHODS]
    rows = []
    for layer, case in {**LAYERS, **{name: OTHERS[name] for name in SOME}}.items():
        cells = []
        for method in methods:
            reasons = treatment(method, case)
            own = sum(not r for r in reasons)
            cells.append(YES if own == len(reasons) else NO if own == 0 else f"{own}/{len(reasons)}")
        rows.append((layer, *cells))
    return table(("layer", *(f"`{m}`" for m in methods)), rows)


def by_layer() -> str:
    """A table of layers and methods of layers: who trains what, and why not the method."""
    notes: dict[str, int] = {}
    rows = [
        (layer, *(_share(treatment(method, case), notes) for method in METHODS))
        for layer, case in {**LAYERS, **OTHERS}.items()
    ]
    reasons = "\n".join(f"{k}. {message}" for message, k in notes.items())
    return table(("layer", *(f"`{m}`" for m in METHODS)), rows) + f"\n\n{reasons}"


def _share(reasons: tuple[str, ...], notes: dict[str, int]) -> str:
    """How many of a layer's parameters a method trains, and the numbers of the reasons for the others."""
    own = sum(not r for r in reasons)
    if own == len(reasons):
        return YES
    marks = dict.fromkeys(notes.setdefault(r, len(notes) + 1) for r in reasons if r)
    return f"{f'{own}/{len(reasons)}' if own else NO} ({', '.join(map(str, marks))})"


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
        found, layers, others = list(outcomes()), by_layer(), by_method()
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
        by_precision=by_precision(),
        by_callback=by_callback(),
        others=others,
        kinds=len(LAYERS) + len(OTHERS),
    )


TEXT = """# Support matrix

Made by `python docs/_ext/support.py` from what is registered; a test compares it with what the code does.

## Layer × labels × structure × precision

{trained} of {total} combinations were built and took a step, and {refused} are refused before anything runs,
each with one of the reasons below. {yes} means every one of these layers ({read}) in every precision
({precisions}); {no} is refused, and the number says why.

Methods that invert their factors (`kfac`; `foof` has `labels = "none"`) need a structure that is a
[Gram](concepts/structure.md#gram):

{kfac}

Inverse-free methods (`singd`; `ingd` and `ikfac` alike) need a [Group](concepts/structure.md#group):

{singd}

{reasons}

`ekfac` takes what `kfac` takes, but for `labels = "none"`; `cg-fac` keeps rows instead of factors and takes
no structure; `shampoo`, `soap`, `kl-shampoo` and `kl-soap` take every Gram, `sirf-shampoo` every Group,
and none of them knows labels.

## Layer × method

What methods of layers train themselves, of {kinds} kinds of layers; each model took a step. {yes}: every
parameter; {no}: none, the fallback trains them; 2/4: two of four. The number is that of the reason.

Every layer that is trained is compared with the dense Gauss–Newton matrix in float64, with exact labels
(`tests/docs/test_support_matrix.py`): the rows that the method sees of a layer give its diagonal block.
Where an embedding is tied to a layer, the block is that of the layer's use alone, and is left to the
fallback unless a part's setting `tied` asks for it.
`foof` uses the inputs of these rows alone.

{layers}

## Other methods

They read no layers, or take gradients of single examples where no reader explains a block (`lm`, `engd`,
`dngd`, `spring`); nothing is left out.

{others}

## Method × precision

{yes}: the loss of a batch falls in twelve steps of a small network; {no}: it is refused, with the reason.
[Backend](concepts/backend.md) says what each precision is. `phases` is made of these.

{by_precision}

## Method × callback

{yes}: a small network takes steps, an epoch each, with the [callback](concepts/callback.md). Where its
penalty has a curvature ρI: λ, it enters the damping; G, products with the Gauss–Newton matrix; g, the penalty
moves parameters through its gradient only. {no}: the two do not go together, with the reason.

{by_callback}

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
