"""Callbacks × methods, for the support matrix: found by steps of a small network, an epoch each."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from listings import OURS, table
from torch import Tensor, nn

from curvlab.config import build_method, build_part
from curvlab.engine.companions import Companions
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import ConfigError
from curvlab.objectives.supervised import objective
from curvlab.precision.full import Full
from curvlab.protocols.callback import Callback
from curvlab.protocols.report import Event
from curvlab.registry.loader import installed
from curvlab_compress.svd_layer import decomposed

YES, NO = "●", "–"

#: how the curvature of a penalty reaches a method, as its event says it, and in a cell
ENTERS = {"damping": "● λ", "products": "● G", "gradient alone": "● g"}

#: dampings of methods that solve with none or little: a penalty acts where the loss has no curvature, too
DAMPINGS: dict[str, Any] = {
    **dict.fromkeys(("engd", "dngd", "kfac-pinn"), 0.1),
    "ksd": {"use": "constant", "value": 1.0},
}

#: steps of a method that rejects its first ones
MOST = 8


def network(factorized: bool) -> nn.Module:
    """A convolution and a linear layer, or the same in factors."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3), nn.Linear(16, 3)]
    if factorized:
        layers = [decomposed(layer, "channel") for layer in layers]
    return nn.Sequential(layers[0], nn.Tanh(), nn.Flatten(), layers[1]).double()


def cell(callback: str, method: str, notes: dict[str, int]) -> str:
    """Whether a method trains with a callback; raises ``AssertionError`` if it does not and says nothing."""
    registry, events = installed(), list[Event]()
    knobs = {"damping": DAMPINGS[method]} if method in DAMPINGS else {}
    model = network(callback == "svd-training")
    composed = build_method(registry, method, knobs)
    part: Callback[Any] = build_part(registry, Callback, callback)
    x = torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = [p.detach().clone() for p in model.parameters()]
    try:
        companions = Companions.of({"one": part}, model, composed)
        optimizer = CurvatureOptimizer(
            composed, model, backend=Full("float64"), companions=companions, on_event=events.append
        )
        for epoch in range(1, MOST + 1):
            loss = optimizer.step(objective(model, nn.CrossEntropyLoss(), x, torch.arange(6) % 3))
            companions.stepped(model, float(loss))
            companions.epoch_ended(model, epoch, epoch)
            if epoch > 1 and any(
                not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)
            ):
                break
    except ConfigError as error:
        reason = error.faults[0].message
        return f"{NO} ({notes.setdefault(reason, len(notes) + 1)})"
    _require_trained(before, model, method)
    said = [event.detail["enters"] for event in events if event.name == "penalty-curvature"]
    return ENTERS[said[0]] if said else YES


def _require_trained(before: list[Tensor], model: nn.Module, method: str) -> None:
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters()), method
    assert _moved(before, model), method


def _moved(before: list[Tensor], model: nn.Module) -> bool:
    return any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def by_callback() -> str:
    """A table of methods and callbacks, and why some do not go together."""
    registry, notes = installed(), dict[str, int]()
    callbacks = [e.name for e in registry.parts("callback") if OURS.fullmatch(e.distribution)]
    methods = [e.name for e in registry.method_entries() if OURS.fullmatch(e.distribution)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # coverage of so small a network
        rows = [(f"`{m}`", *(cell(c, m, notes) for c in callbacks)) for m in methods]
    reasons = "\n".join(f"{k}. {message}" for message, k in notes.items())
    return table(("method", *(f"`{c}`" for c in callbacks)), rows) + f"\n\n{reasons}"


if __name__ == "__main__":
    print(by_callback())
