"""Methods × precisions, for the support matrix: found by a few steps of a small network."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from listings import OURS, table
from torch import nn

import curvlab
from curvlab.config import build_part
from curvlab.errors import ConfigError
from curvlab.protocols.backend import Backend
from curvlab.registry.loader import installed

YES, NO = "●", "–"
STEPS = 12


def precisions() -> Iterator[tuple[str, torch.dtype]]:
    """The precisions of ours that an optimizer takes by name, each with the dtype of its parameters."""
    registry = installed()
    for entry in registry.parts("precision"):
        if not OURS.fullmatch(entry.distribution):
            continue
        try:
            found = build_part(registry, Backend, entry.name, {})
        except ConfigError:  # it needs settings: a precision made of others
            continue
        yield entry.name, found.dtypes.parameters


def cell(method: str, precision: str, dtype: torch.dtype, notes: dict[str, int]) -> str:
    """Whether the loss of one batch falls; raises ``AssertionError`` if it does not, and is not refused.

    A refusal is the number of its reason in ``notes``.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).to(dtype)
    x, y = torch.randn(64, 6), torch.arange(64) % 3
    found = []
    try:
        optimizer = curvlab.optimizer(method, model, precision=precision)
        for _ in range(STEPS):
            objective = curvlab.objective(model, nn.CrossEntropyLoss(), x.to(dtype), y)
            found.append(float(optimizer.step(objective)))
    except ConfigError as error:
        return f"{NO} ({notes.setdefault(error.faults[0].message, len(notes) + 1)})"
    finite = [loss for loss in found if math.isfinite(loss)]  # the first may overflow under a loss scale
    assert finite[-1] < finite[0], (method, precision, found)
    return YES


def by_precision() -> str:
    """The table."""
    methods = [e.name for e in installed().method_entries() if OURS.fullmatch(e.distribution)]
    columns = list(precisions())
    notes: dict[str, int] = {}
    rows = [(f"`{m}`", *(cell(m, name, dtype, notes) for name, dtype in columns)) for m in methods]
    reasons = "\n".join(f"{k}. {message}" for message, k in notes.items())
    return table(("method", *(f"`{name}`" for name, _ in columns)), rows) + f"\n\n{reasons}"
