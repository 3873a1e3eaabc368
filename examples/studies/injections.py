"""What becomes of one number that is not finite: in the gradient, in a state or in an update.

    python examples/studies/injections.py [--only METHOD ...] [--json]

216 runs of a small network: nine methods, four places, NaN and infinity, before steps 0, 3 and 7.  Places:

* gradient: the gradient that arrives at a layer's outputs, on one batch; the loss stays finite;
* factor: a matrix of the state (``PLACES``); sgd and adamw hold none, so a vector of theirs stands for it;
* moment: a moving average or momentum of the state, or for hf-gn the vector that its next solve starts from;
* update: the preconditioned gradient of one step, whatever the damping.

A run is *silent* if the step does not end in ``Diverged``.  It is *saved* if a number that is not finite, and
that was not put there, is in the state afterwards, or if a checkpoint would be written of one.  It is
*marked* if a bit of parameters, states, counters or the generator is not what it was before the step.
Afterwards the number is put back, and the run is *stuck* if it does not train for a cadence.  Exits 1 if
anything of this is so.
About two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import curvlab
from curvlab.engine.health import require_finite_tensors
from curvlab.errors import CurvlabError, Diverged

#: the state of KFAC within hf-gn's
KFAC = "preconditioner.inner.initial.part"
#: method -> the knobs it runs with, a tensor of its state for "factor", one for "moment"
PLACES: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "sgd": ({}, "on_gradient.1@2.weight", "on_gradient.1@0.weight"),
    "adamw": ({}, "preconditioner.second@2.weight", "on_gradient.0.average@2.weight"),
    "kfac": ({"refresh": 5}, "preconditioner.inverse.blocks.2.A.matrix", "on_gradient.0.average@2"),
    "ekfac": ({"refresh": 5}, "preconditioner.basis.2.Q_A", "preconditioner.moments@2"),
    "foof": ({"refresh": 5}, "preconditioner.estimate.A.2.matrix", "on_gradient.0.average@2"),
    "singd": ({"refresh": 5}, "preconditioner.blocks.2.K.matrix", "on_gradient.0.average@2"),
    "shampoo": ({"refresh": 5}, "preconditioner.direction.grams.2.0.matrix", "on_gradient.0.average@2"),
    "soap": ({"refresh": 5}, "preconditioner.bases.2.0", "preconditioner.second@2"),
    "hf-gn": ({"refresh": 2}, f"{KFAC}.inverse.blocks.2.A.matrix", "preconditioner.start@2"),
}
WHERE = ("gradient", "factor", "moment", "update")
VALUES = {"nan": math.nan, "inf": math.inf}
STEPS = (0, 3, 7)
#: steps that must go well after the number was put back
CADENCE = 5


class Tap(nn.Module):
    """The identity; while ``value`` is set, an entry of the gradient that passes is that."""

    def __init__(self) -> None:
        super().__init__()
        self.value: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The input itself."""
        if self.value is not None and x.requires_grad:
            x = x * 1.0
            x.register_hook(self._spoiled)  # type: ignore[no-untyped-call]
        return x

    def _spoiled(self, g: Tensor) -> Tensor:
        g = g.clone()
        g[0, 0] = math.nan if self.value is None else self.value
        return g


@dataclass
class Spoiler:
    """Delegates to a preconditioner; while ``value`` is set, the first entry of its update is that."""

    inner: Any
    value: float | None = field(default=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def apply(self, state: Any, v: Any, ctx: Any) -> Any:
        """The inner one's solution, spoiled."""
        solve = self.inner.apply(state, v, ctx)
        if self.value is None:
            return solve
        x = solve.x.clone()
        x.flat[0] = self.value
        return replace(solve, x=x, iterates=())

    def fallible(self, state: Any, step: int) -> bool:
        """A part by others: nothing is known of it."""
        return True


@dataclass(frozen=True)
class Fate:
    """What became of one injection; ``fault`` is empty where all is well."""

    method: str
    where: str
    value: str
    step: int
    fault: str


def batch(k: int) -> tuple[Tensor, Tensor]:
    """The k-th batch."""
    g = torch.Generator().manual_seed(k)
    return torch.randn(32, 6, generator=g), torch.randint(0, 4, (32,), generator=g)


def inject(method: str, where: str, value: str, at: int) -> Fate:
    """One run."""
    knobs, *paths = PLACES[method]
    torch.manual_seed(0)
    tap = Tap()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), tap)
    optimizer = curvlab.optimizer(method, model, **knobs)
    spoiler = Spoiler(optimizer.arms[0].method.preconditioner)
    arm = optimizer.arms[0]
    optimizer.arms[0] = replace(arm, method=replace(arm.method, preconditioner=spoiler))

    def step(k: int) -> None:
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), *batch(k)))

    for k in range(at):
        step(k)
    kept, entry = 0.0, None
    if where == "gradient":
        tap.value = VALUES[value]
    elif where == "update":
        spoiler.value = VALUES[value]
    else:
        path = paths[0] if where == "factor" else paths[1]
        entry = optimizer.snapshot()[0][f"{method}/{path}"]
        kept = float(entry[(0,) * entry.dim()])
        entry[(0,) * entry.dim()] = VALUES[value]
    rested: list[str] = []
    optimizer.on_event = lambda event: rested.append(event.name)
    before, put = everything(optimizer), strange(optimizer)
    try:
        step(at)
        if where == "update" and "preconditioner-initialized" in rested:  # there was no update yet
            at, before = at + 1, everything(optimizer)
            step(at)
        return Fate(method, where, value, at, "silent")
    except Diverged:
        pass
    if strange(optimizer) != put or (put and may_be_written(optimizer)):
        return Fate(method, where, value, at, "saved")
    if not same(before, everything(optimizer)):
        return Fate(method, where, value, at, "marked")
    tap.value = spoiler.value = None
    if entry is not None:
        entry[(0,) * entry.dim()] = kept
    try:
        for k in range(at, at + CADENCE + 1):
            step(k)
    except CurvlabError:
        return Fate(method, where, value, at, "stuck")
    return Fate(method, where, value, at, "saved" if strange(optimizer) else "")


def everything(optimizer: Any) -> dict[str, Any]:
    """Every bit that a step may change."""
    tensors, plain = optimizer.snapshot()
    parameters = {f"θ/{n}": p.detach() for n, p in optimizer.model.named_parameters()}
    return {**{n: t.clone() for n, t in (tensors | parameters).items()}, **plain}


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Bit for bit, NaN being NaN."""
    if a.keys() != b.keys():
        return False
    for name, x in a.items():
        if isinstance(x, Tensor):
            if not torch.equal(x.nan_to_num(nan=1.5e30), b[name].nan_to_num(nan=1.5e30)):
                return False
        elif repr(x) != repr(b[name]):
            return False
    return True


def strange(optimizer: Any) -> int:
    """How many numbers of parameters and states are not finite."""
    return sum(
        int((~torch.isfinite(t)).sum()) for t in everything(optimizer).values() if isinstance(t, Tensor)
    )


def may_be_written(optimizer: Any) -> bool:
    """Whether the look that goes before every checkpoint lets these tensors pass."""
    try:
        require_finite_tensors(optimizer.snapshot()[0], "not finite")
    except Diverged:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=PLACES, default=list(PLACES), metavar="METHOD")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    fates = [
        inject(method, where, value, at)
        for method in arguments.only
        for where in WHERE
        for value in VALUES
        for at in STEPS
    ]
    wrong = [fate for fate in fates if fate.fault]
    if arguments.json:
        json.dump({"runs": len(fates), "wrong": [vars(fate) for fate in wrong]}, sys.stdout, indent=2)
        return int(bool(wrong))
    print(f"{'method':10} " + " ".join(f"{where:>9}" for where in WHERE) + "   of 6 each, well")
    for method in arguments.only:
        well = Counter(fate.where for fate in fates if fate.method == method and not fate.fault)
        print(f"{method:10} " + " ".join(f"{well[where]:9}" for where in WHERE))
    for fate in wrong:
        print(
            f"{fate.fault.upper()}: {fate.method}, {fate.value} in the {fate.where} before step {fate.step}"
        )
    print(f"{len(fates)} injections, {len(wrong)} silent, saved, marked or stuck")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
