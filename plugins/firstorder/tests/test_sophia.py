"""Sophia-G is its paper's update, written out here; its estimate of curvature is the Fisher's diagonal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError
from curvlab.objectives.supervised import objective
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels
from curvlab.testing.unread import UnreadNorm
from curvlab_firstorder.sampled_diagonal import SampledDiagonal

#: not the defaults, so that each of them makes a difference; some updates are clipped and others are not
LR, BETA_1, BETA_2, RHO, EPS, DECAY, EVERY, STEPS = 0.02, 0.7, 0.6, 0.5, 1e-9, 0.1, 3, 11


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def batch(k: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(k)
    return torch.randn(16, 5, dtype=torch.float64, generator=g), torch.randint(0, 3, (16,), generator=g)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Sampled labels, by observation: the gradient of a softmax is negative at the label alone."""
    found: list[Tensor] = []
    observe = SampledDiagonal.observe

    def noting(self: Any, state: Any, seen: Evaluation, ctx: Any) -> None:
        *_, (last,) = seen.layers[Labels.MODEL].values()
        assert last.grads is not None
        found.append(last.grads[0, :, 0].argmin(-1))
        observe(self, state, seen, ctx)

    monkeypatch.setattr(SampledDiagonal, "observe", noting)
    return found


def test_every_step_is_the_papers(optimizer: Any, drawn: list[Tensor]) -> None:
    """``m ← β₁ m + (1 − β₁) g``; ``h ← β₂ h + (1 − β₂) B ĝ²``; ``θ ← θ − η λ θ − η clip(m / (ρ h + ε), 1)``.

    ĝ is the gradient for labels that are sampled from the model, every k steps, and B the batch size; both
    averages begin at zero.
    """
    ours, theirs, criterion = network(), network(), nn.CrossEntropyLoss()
    knobs = {"beta1": BETA_1, "decay": BETA_2, "rho": RHO, "damping": EPS / RHO, "refresh": EVERY}
    method = optimizer("sophia", ours, lr=LR, weight_decay=DECAY, **knobs)
    m = [torch.zeros_like(p) for p in theirs.parameters()]
    h = [torch.zeros_like(p) for p in theirs.parameters()]
    clipped = whole = 0
    for t in range(STEPS):
        x, y = batch(t)
        method.step(objective(ours, criterion, x, y))
        g = torch.autograd.grad(criterion(theirs(x), y), list(theirs.parameters()))
        if t % EVERY == 0:
            sampled = torch.autograd.grad(criterion(theirs(x), drawn[-1]), list(theirs.parameters()))
            h = [BETA_2 * a + (1 - BETA_2) * len(x) * b.square() for a, b in zip(h, sampled, strict=True)]
        m = [BETA_1 * a + (1 - BETA_1) * b for a, b in zip(m, g, strict=True)]
        with torch.no_grad():
            for p, a, b in zip(theirs.parameters(), m, h, strict=True):
                ratio = a / (RHO * b + EPS)
                clipped += int((ratio.abs() > 1).sum())
                whole += int((ratio.abs() <= 1).sum())
                p.sub_(LR * DECAY * p + LR * ratio.clamp(-1, 1))
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert len(drawn) == len(range(0, STEPS, EVERY))
    assert min(clipped, whole) > 50


def test_no_parameter_moves_farther_than_the_rate(optimizer: Any) -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    method = optimizer("sophia", model, lr=LR, weight_decay=0.0)
    x, y = batch(0)
    method.step(objective(model, nn.CrossEntropyLoss(), 1e3 * x, y))
    moved = [float((p.detach() - q).abs().max()) for p, q in zip(model.parameters(), before, strict=True)]
    assert max(moved) <= LR * (1 + 1e-12)
    assert max(moved) >= 0.99 * LR


def test_what_is_no_layer_goes_to_the_fallback(optimizer: Any) -> None:
    model = nn.Sequential(nn.Linear(5, 7), UnreadNorm(7), nn.Linear(7, 3)).double()
    by = {row.parameter: row.treatment for row in optimizer("sophia", model).coverage()}
    assert by["0.weight"] == by["2.bias"] == "sophia"
    assert by["1.weight"] == by["1.bias"] == "fallback"


def softmax_rows(n: int, samples: int) -> tuple[LayerStats, Tensor]:
    """Statistics of a linear softmax layer with sampled labels, and its Fisher matrix's exact diagonal."""
    g = torch.Generator().manual_seed(0)
    x, logits = torch.randn(n, 4, dtype=torch.float64, generator=g), torch.randn(n, 3, generator=g).double()
    p = logits.softmax(-1)
    labels = torch.multinomial(p, samples, replacement=True, generator=g).T
    rows = (p - nn.functional.one_hot(labels, 3)) / samples**0.5
    return LayerStats(x.unsqueeze(1), rows.unsqueeze(2)), (p * (1 - p)).T @ x.square() / n


@pytest.mark.parametrize("squares", ["examples", "batch"])
def test_both_squares_are_the_fishers_diagonal_on_average(squares: Any) -> None:
    stats, exact = softmax_rows(n=6, samples=40_000)
    found = SampledDiagonal(squares=squares)._diagonal(stats)
    # the relative deviation of a mean of 40,000 squares with a heavy tail: below a hundredth; times four
    torch.testing.assert_close(found, exact, rtol=0.04, atol=0.0)


def test_squares_of_examples_with_several_rows_are_of_their_sums() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(5, 3, 4, dtype=torch.float64, generator=g)
    rows = torch.randn(2, 5, 3, 6, dtype=torch.float64, generator=g)
    each = torch.einsum("vnso,nsi->vnoi", rows, a)
    found = SampledDiagonal()._diagonal(LayerStats(a, rows))
    torch.testing.assert_close(found, each.square().sum((0, 1)) / 5)
    found = SampledDiagonal(squares="batch")._diagonal(LayerStats(a, rows))
    torch.testing.assert_close(found, each.sum(1).square().sum(0) / 5)


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"samples": 0}, {"examples": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SampledDiagonal(**wrong)
