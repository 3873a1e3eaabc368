"""Losses × what methods evaluate, for the support matrix: found by evaluating it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from listings import OURS, table
from torch import Tensor, nn

import curvlab
from curvlab.config import build_part
from curvlab.config.example import example_settings
from curvlab.errors import ConfigError
from curvlab.model.partition import partition
from curvlab.objectives.losses import CriterionLoss, ModelLoss
from curvlab.objectives.nested import each_tensor, tensors_of
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.loss import Loss
from curvlab.protocols.needs import Labels, Needs
from curvlab.registry.loader import installed

YES, NO, FISHER = "●", "–", "Fisher"
N = 6

#: columns: what is evaluated
ASKED = {
    "gradient": Needs(),
    '`labels = "data"`': Needs(layers=frozenset({Labels.DATA})),
    '`labels = "model"`': Needs(layers=frozenset({Labels.MODEL}), samples=1),
    '`labels = "exact"`': Needs(layers=frozenset({Labels.EXACT})),
    "Gauss-Newton products": Needs(products=1),
}


class Giving(nn.Module):
    """A linear layer whose outputs are added to given ones: at the start these themselves."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs, self.sizes = outputs, [t.numel() // N for t in tensors_of(outputs)]
        self.layer = nn.Linear(2, sum(self.sizes), dtype=torch.float64)
        for p in self.layer.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Any:
        """``[n, 2]`` to outputs in the form of those given."""
        parts = iter(self.layer(x).split(self.sizes, 1))
        return each_tensor(lambda t: t + next(parts).view(t.shape), self.outputs)


class Returning(Giving):
    """A model that returns its loss."""

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 2]`` to a number."""
        found: Tensor = super().forward(x)
        return found.square().mean()


def losses() -> Iterator[tuple[str, Loss]]:
    """Every registered loss of ours, and criteria known by their values."""
    registry = installed()
    for entry in registry.parts("loss"):
        if OURS.fullmatch(entry.distribution):
            yield (
                f"`{entry.name}`",
                build_part(registry, Loss, registry.use(entry), example_settings(entry, {})),
            )
    yield "a criterion by its value, convex", CriterionLoss(lambda f, y: (f - y).pow(4).mean())
    yield "a criterion by its value, not convex", CriterionLoss(lambda f, y: (f - y).sin().mean())
    yield "the loss that a model returns", ModelLoss()


def cell(loss: Loss, needs: Needs) -> str:
    """Whether the loss gives what is asked of it; raises ``AssertionError`` if that is not finite."""
    outputs, targets = loss.example(N, torch.Generator().manual_seed(0))
    model = (Returning if isinstance(loss, ModelLoss) else Giving)(outputs)
    x = torch.randn(N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    blocks = partition(model, lambda layer: True)
    asked = curvlab.objective(model, loss, x, targets)
    ctx = Context(1, 0.0, Full("float64"), torch.Generator().manual_seed(2))
    try:
        seen = asked.evaluate(needs, blocks, ctx)
        v = blocks.read()
        v.flat.copy_(torch.randn(v.flat.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(3)))
        found = seen.gradient if seen.ggn is None else seen.ggn @ v
    except ConfigError:
        return NO
    assert bool(found.flat.isfinite().all()), loss
    curved = needs.products or needs.layers & {Labels.MODEL, Labels.EXACT}
    return FISHER if curved and loss.curvature == "fisher" else YES


def by_loss() -> str:
    """A table of losses and what is evaluated."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, loss in losses():
            rows.append((name, *(cell(loss, needs) for needs in ASKED.values())))
    return table(("loss", *ASKED), rows)
