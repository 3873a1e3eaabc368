"""A method that treats little of a model itself says so, and refuses if it is to be strict."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import curvlab
from curvlab.engine.coverage import CoverageWarning
from curvlab.errors import CoverageError
from curvlab.objectives.evaluation import LayerMismatch


class Words(nn.Module):
    """An embedding that no reader reads, and a head that is small beside it or is none."""

    def __init__(self, words: int, head: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(words, 4, scale_grad_by_freq=True)
        self.head = nn.Linear(4, 3) if head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x))


X, Y = torch.arange(8) % 3, torch.arange(8) % 3


def step(model: nn.Module, method: str = "kfac", **knobs: object) -> list[str]:
    labels = {"labels": "data"} if method == "kfac" else {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        opt = curvlab.optimizer(method, model, **labels, **knobs)  # type: ignore[arg-type]
        for _ in range(2):
            opt.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            opt.step()
    return [str(w.message) for w in said if issubclass(w.category, CoverageWarning)]


def test_less_than_half_is_one_line_at_the_first_step() -> None:
    (said,) = step(Words(10))
    assert 'method "kfac" treats 2 of 3 parameters (27 % of the elements)' in said
    assert "Embedding with scale_grad_by_freq scales its gradient (1)" in said
    assert "\n" not in said


def test_none_is_said_with_the_reasons() -> None:
    (said,) = step(Words(4, head=False), "singd")
    assert 'method "singd" treats none of 1 parameters' in said
    assert "scale_grad_by_freq scales its gradient" in said


def test_half_is_nothing_to_speak_of() -> None:
    assert step(Words(3)) == []
    assert step(Words(10), "adamw") == []


def test_strict_refuses_when_it_is_made() -> None:
    with pytest.raises(CoverageError, match=r"treats 2 of 3 parameters .*\n.*strict=True"):
        curvlab.optimizer("kfac", Words(10), strict=True)
    curvlab.optimizer("kfac", Words(3), strict=True)


def test_strict_refuses_a_layer_that_leaves_later() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(6, 3)
    opt = curvlab.optimizer("kfac", model, labels="data", refresh=1, strict=True)
    F.mse_loss(model(x), x).backward()
    opt.step()
    opt.zero_grad()
    beside = F.linear(x, model[0].weight).square().mean() + model[2].weight.square().sum()
    (F.mse_loss(model(x), x) + beside).backward()
    with pytest.warns(LayerMismatch), pytest.raises(CoverageError, match="treats none"):
        opt.step()


@pytest.mark.parametrize("size", [1e-15, 1e-24], ids=str)
def test_a_layer_stays_where_the_squares_of_its_gradient_underflow(size: float) -> None:
    """As those of units that are off for every example: nothing contradicts the layer's calls."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    opt = curvlab.optimizer("singd", model, refresh=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            opt.zero_grad()
            model(torch.randn(500, 4)).backward(size * torch.randn(500, 3))
            opt.step()
    assert {row.treatment for row in opt.coverage()} == {"singd"}
