"""SIRF-Shampoo on a network with every kind of block."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.config import build_method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.precision.full import Full
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE
from curvlab_precision.half import Bfloat16
from curvlab_singd.sirf_shampoo import Modes
from plugins.singd.tests.bare import theta
from tests.limits.registered import registry

#: lr/λ is the rate of a direction without curvature
RATES: dict[str, Any] = {"lr": 5e-3, "damping": 3e-2, "curvature_lr": 0.1}


class Mixed(nn.Module):
    """Blocks of zero to three axes: layers of several kinds, and two parameters that no layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 5, 3, padding=1)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)
        self.mix = nn.Parameter(torch.randn(2, 5, 5) / 5)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(self.embed(x).mT)).mT
        for matrix in self.mix:
            y = y + torch.tanh(y @ matrix)
        out: Tensor = self.head(self.norm(y).mean(1)) * self.gain
        return out


def mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed().to(DTYPE)


def batch(k: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(0, 7, (24, 6), generator=torch.Generator().manual_seed(k))
    return x, (x == 3).sum(1).clamp(max=2)


def make(model: nn.Module, **knobs: Any) -> CurvatureOptimizer:
    method = build_method(registry(), "sirf-shampoo", {**RATES, **knobs})
    return CurvatureOptimizer(method, model, backend=Full("float64"), name="sirf-shampoo")


def train(ours: CurvatureOptimizer, steps: range) -> list[float]:
    losses = []
    for k in steps:
        ours.zero_grad()
        loss = nn.functional.cross_entropy(ours.model(batch(k)[0]), batch(k)[1])
        loss.backward()
        ours.step()
        losses.append(float(loss.detach()))
    return losses


def state_of(ours: CurvatureOptimizer) -> dict[str, Modes]:
    found: dict[str, Modes] = ours.arms[0].state.preconditioner
    return found


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("structure", ["dense", "diagonal", "hierarchical", "auto"])
def test_every_parameter_of_a_mixed_network_is_trained(structure: str, every: int) -> None:
    ours = make(mixed(), structure=structure, refresh=every)
    before = {n: p.detach().clone() for n, p in ours.model.named_parameters()}
    losses = train(ours, range(60))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert len(ours.arms) == 1, "nothing went to a fallback"
    assert all(not torch.equal(p, before[n]) for n, p in ours.model.named_parameters())
    assert {len(m.shape) for m in state_of(ours).values()} == {1, 2, 3}
    assert state_of(ours)["gain"].shape == (1,)
    assert state_of(ours)["conv"].shape == (5, 4 * 3 + 1)
    assert state_of(ours)["head"].shape == (3, 6)


def test_an_objective_in_micro_batches_is_one_batch_of_a_plain_loop() -> None:
    plain, asked = make(mixed()), make(mixed())
    train(plain, range(6))
    for k in range(6):
        asked.step(curvlab.objective(asked.model, nn.CrossEntropyLoss(), *batch(k), micro_batch=7))
    assert_close(theta(asked.model), theta(plain.model), dimension=100, condition=100.0)


def test_between_updates_the_factors_rest() -> None:
    ours = make(mixed(), refresh=3)
    train(ours, range(1))
    at_first = {n: [K.dense().clone() for K in m.K] for n, m in state_of(ours).items()}

    def same(n: str) -> bool:
        now = [K.dense() for K in state_of(ours)[n].K]
        return all(torch.equal(a, b) for a, b in zip(now, at_first[n], strict=True))

    train(ours, range(1, 3))
    assert all(same(n) for n in at_first)
    train(ours, range(3, 4))
    assert not any(same(n) for n in at_first)


@pytest.mark.parametrize("momentum", [0.5, 0.0])
def test_a_resumed_run_goes_on_to_the_bit(momentum: float) -> None:
    whole = make(mixed(), refresh=2, curvature_momentum=momentum)
    train(whole, range(5))
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again = make(copy.deepcopy(whole.model), refresh=2, curvature_momentum=momentum)
    again.load_state_dict(torch.load(file, weights_only=True))
    for ours in (whole, again):
        train(ours, range(5, 10))
    assert torch.equal(theta(again.model), theta(whole.model))


@pytest.mark.parametrize(("momentum", "copies"), [(0.5, 2), (0.0, 1)])
def test_the_state_is_there_at_once_and_of_the_size_stated(momentum: float, copies: int) -> None:
    ours = make(mixed(), curvature_momentum=momentum, momentum=0.0)
    scalars = sum(d * d for m in state_of(ours).values() for d in m.shape)
    weights = sum(p.numel() for p in ours.model.parameters())
    before = ours.state_bytes()
    assert before == 8 * (copies * scalars + weights)
    train(ours, range(2))
    assert ours.state_bytes() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fifty_steps_in_narrow_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Mixed().to(dtype)
    method = build_method(registry(), "sirf-shampoo", dict(RATES))
    backend = Bfloat16() if dtype == torch.bfloat16 else Full("float32")
    ours = CurvatureOptimizer(method, model, backend=backend, name="sirf-shampoo")
    losses = train(ours, range(50))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for modes in state_of(ours).values():
        for tensor in (t for s in (*modes.K, *modes.m) for t in s.tensors().values()):
            assert tensor.dtype == dtype
            assert bool(torch.isfinite(tensor).all())
