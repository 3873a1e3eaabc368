"""An objective as the closure that torch's own optimizers take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.objectives.supervised import objective
from tests.objectives.asking import classifier


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("name", ["LBFGS", "AdamW"])
def test_an_objective_is_a_closure_for_torchs_optimizers(name: str, micro_batch: int | None) -> None:
    settings: dict[str, Any] = {"LBFGS": {"lr": 0.5, "max_iter": 4}, "AdamW": {"lr": 0.01}}[name]
    (mine, x, y), (twin, _, _) = classifier(), classifier()
    ours, theirs = (getattr(torch.optim, name)(m.parameters(), **settings) for m in (mine, twin))

    def closure() -> Tensor:
        theirs.zero_grad()
        loss = F.cross_entropy(twin(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        found = ours.step(objective(mine, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch))
        torch.testing.assert_close(found, theirs.step(closure).detach())
    for p, q in zip(mine.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_closure_forgets_earlier_gradients_and_holds_no_graph() -> None:
    model, x, y = classifier()
    asked = objective(model, nn.CrossEntropyLoss(), x, y)
    asked()
    first = [p.grad.clone() for p in model.parameters()]
    value = asked()
    assert not value.requires_grad
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), first, strict=True))
