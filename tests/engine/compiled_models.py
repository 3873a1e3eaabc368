"""What is trained when ``torch.compile`` has compiled the model.  ``python compiled_models.py OUT``.

A program of its own: what the tests put around the package's functions is nothing that torch can compile.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import curvlab
from curvlab.errors import ConfigError

METHODS: Mapping[str, Mapping[str, Any]] = {
    "singd": {"refresh": 1},
    "kfac": {"refresh": 1, "labels": "exact"},
    "hf-gn": {"labels": "exact"},
}
#: method, and whether its loop is a plain one
LOOPS = (("singd", True), ("singd", False), ("kfac", False), ("hf-gn", False))
X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3
CRITERION = nn.CrossEntropyLoss()

#: torch's compiler without code generation: what it does to hooks and derivatives, at little cost
BACKEND = "aot_eager"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def compiled(how: str, *, called: bool = False) -> nn.Module:
    model: Any = network()
    if how == "wrapped":
        model = torch.compile(model, backend=BACKEND)
    elif how == "in place":
        model.compile(backend=BACKEND)
    if called:
        model(X).sum().backward()
    return model  # type: ignore[no-any-return]


def trained(method: str, model: nn.Module, *, plain: bool) -> list[Tensor]:
    optimizer = curvlab.optimizer(method, model, **METHODS[method])
    for _ in range(3):
        if plain:
            optimizer.zero_grad()
            CRITERION(model(X), Y).backward()
            optimizer.step()
        else:
            optimizer.step(curvlab.objective(model, CRITERION, X, Y))
    return [p.detach().clone() for p in model.parameters()]


def main(out: str) -> None:
    found: dict[str, Any] = {}
    for method, plain in LOOPS:
        for how in ("not", "wrapped", "in place"):
            found[f"{method}, {plain}, {how}"] = trained(method, compiled(how), plain=plain)
            torch.compiler.reset()
    for plain in (True, False):
        found[f"called, {plain}, in place"] = trained("singd", compiled("in place", called=True), plain=plain)
        try:
            trained("singd", compiled("wrapped", called=True), plain=plain)
        except ConfigError as error:
            found[f"called, {plain}, wrapped"] = str(error)
        torch.compiler.reset()
    torch.save(found, out)


if __name__ == "__main__":
    main(sys.argv[1])
