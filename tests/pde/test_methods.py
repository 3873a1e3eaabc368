"""Every method trains a problem of several terms, and finds its unknown coefficient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from curvlab import pde
from curvlab.protocols.evidence import LayerStats
from curvlab.protocols.rows import rows_of
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from tests.limits.registered import methods, optimizer
from tests.pde.problems import mlp, model, uniform


def stepped(name: str, of: pde.Residuals) -> list[float]:
    """The loss before each of three steps, and after them."""
    ours: Any = optimizer(name, of)
    points = of.problem.draw()
    losses = [float(ours.step(pde.objective(of, points))) for _ in range(3)]
    assert all(torch.isfinite(p).all() for p in of.parameters())
    return [*losses, float(pde.objective(of, points).loss())]


@pytest.mark.parametrize("name", methods())
def test_every_method_steps_down_a_loss_of_several_terms(name: str) -> None:
    """Three terms; the inverse of KFAC for PINNs is of two."""
    torch.manual_seed(0)
    losses = stepped(name, pde.Residuals(mlp(2), uniform()) if name == "kfac-pinn" else model())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["adamw", "lm", "hf-gn", "kfac"])
def test_networks_without_rules_are_trained(name: str) -> None:
    """By methods that read no layers; others say what their fallback trains."""
    torch.manual_seed(0)
    of = pde.Residuals(
        nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double(), uniform()
    )
    if name != "kfac":
        losses = stepped(name, of)
    else:
        with pytest.warns(UserWarning, match="nested, because jets have no rule for torch.layer_norm"):
            losses = stepped(name, of)
    assert losses[-1] < losses[0]


def test_a_of_several_terms_is_the_mean_and_b_the_sum() -> None:
    shapes = ((1, 5, 3), (2, 6, 2), (1, 4, 1))
    terms = tuple(
        LayerStats(normal(n, s, 4, seed=t), normal(v, n, s, 2, seed=10 + t), channels=True)
        for t, (v, n, s) in enumerate(shapes)
    )
    absent = LayerStats(normal(0, 3, 4, seed=0), normal(1, 0, 3, 2, seed=0), channels=True)
    A = [torch.einsum("nsi,nsj->ij", t.inputs, t.inputs) / t.inputs[..., 0].numel() for t in terms]  # type: ignore[arg-type, index]
    B = [torch.einsum("vnso,vnsp->op", t.grads, t.grads) / len(t.inputs) for t in terms]  # type: ignore[arg-type]
    for given in (terms, (absent, *terms), (terms[0], absent, *terms[1:])):
        for sharing in ("expand", "reduce", "auto"):  # channels of jets are expanded whatever is asked for
            rows = rows_of("test", "fc", given, None, sharing, torch.float64)  # type: ignore[arg-type]
            assert rows.g is not None
            assert_close(rows.a.mT @ rows.a * rows.a_weight, sum(A) / 3, dimension=100)  # type: ignore[union-attr, arg-type]
            assert_close(rows.g.mT @ rows.g * rows.g_weight, sum(B), dimension=100)  # type: ignore[arg-type]
    inputs_alone = tuple(LayerStats(t.inputs, None, channels=True) for t in terms)
    assert rows_of("test", "fc", inputs_alone, None, "auto", torch.float64).g is None  # type: ignore[arg-type]
