"""Complex parameters are pairs of reals: as torch's optimizers treat them, in steps and in products."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from curvlab.model.partition import partition
from curvlab.objectives.supervised import objective
from curvlab.protocols.needs import Needs
from curvlab.testing.asserts import assert_close
from tests.engine.composed import optimizer
from tests.objectives.asking import DTYPE, ask, layers_of, normal


class Spectrum(nn.Module):
    """Complex parameters of three shapes, one a scalar, between real ones of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(normal(3, seed=1))
        self.layer = nn.Linear(5, 3, dtype=DTYPE)
        self.mixing = nn.Linear(5, 3, bias=False, dtype=torch.complex128)
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex128))
        self.phase = nn.Parameter(torch.randn((), dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mixing(x.to(torch.complex128)) * self.filter
        mixed = mixed * self.phase.exp()
        return mixed.abs() + (mixed * mixed).real + self.layer(x) + self.shift


def made() -> tuple[Spectrum, Tensor, Tensor]:
    torch.manual_seed(0)
    return Spectrum(), normal(7, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0])


@pytest.mark.parametrize("by_objective", [True, False], ids=["objective", "plain loop"])
def test_adamw_trains_them_as_torch_does(by_objective: bool) -> None:
    model, x, y = made()
    twin = copy.deepcopy(model)
    torchs = torch.optim.AdamW(twin.parameters(), lr=0.05, weight_decay=0.1)
    mine = optimizer("adamw", model, lr=0.05, weight_decay=0.1)
    for _ in range(5):
        torchs.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        torchs.step()
        mine.zero_grad()
        if by_objective:
            mine.step(objective(model, nn.CrossEntropyLoss(), x, y))
        else:
            F.cross_entropy(model(x), y).backward()
            mine.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["kfac", "muon"])
def test_methods_of_layers_and_of_matrices_leave_them_to_the_fallback(name: str) -> None:
    model, _, _ = made()
    rows = {row.parameter: row for row in optimizer(name, model).coverage()}
    for parameter in ("mixing.weight", "filter", "phase"):
        assert (rows[parameter].treatment, rows[parameter].reason) == ("fallback", "complex parameter")
        assert rows[parameter].shape == tuple(model.get_parameter(parameter).shape)


@pytest.mark.parametrize("micro_batch", [None, 3], ids=["whole", "by threes"])
def test_products_are_those_of_the_real_jacobian(micro_batch: int | None) -> None:
    model, x, y = made()
    blocks = layers_of(model)
    asked = objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch)
    seen = ask(asked, Needs(products=2), blocks)
    assert seen.ggn is not None
    theta = blocks.read()

    def outputs(flat: Tensor) -> Tensor:
        at = blocks.slots(type(theta)(blocks.layout, flat))
        return functional_call(model, at, (x,))

    J = torch.autograd.functional.jacobian(outputs, theta.flat)  # [n, c, D]
    probabilities = outputs(theta.flat).softmax(1)
    H = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
    G = torch.einsum("nci,ncd,ndj->ij", J, H, J) / len(y)
    for seed in (3, 4):
        v = type(theta)(blocks.layout, normal(blocks.layout.size, seed=seed))
        assert_close((seen.ggn @ v).flat, G @ v.flat)


def test_what_is_packed_and_written_is_what_it_was() -> None:
    model, _, _ = made()
    blocks = partition(model, lambda layer: True)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    theta = blocks.read()
    assert theta.dtype == torch.float64
    assert blocks.layout.size == sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters())
    blocks.subtract_(theta, 0.5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] / 2)
    blocks.assign_(theta)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    kept = theta.clone()
    blocks.add_parameters_(theta, 2.0)
    torch.testing.assert_close(theta.flat, 3 * kept.flat)


class Waves(nn.Module):
    """A model whose first parameter is complex, and which torch.func cannot batch if it ``looks``."""

    def __init__(self, looks: bool = False) -> None:
        super().__init__()
        self.looks = looks
        self.waves = nn.Linear(5, 3, bias=False, dtype=torch.complex128)
        self.layer = nn.Linear(5, 3, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        if self.looks and float(x.detach().sum()) == 0:
            return self.layer(x)
        return self.waves(x.to(torch.complex128)).abs() + self.layer(x)


@pytest.mark.filterwarnings("ignore::curvlab.objectives.variance.SlowVariance")
@pytest.mark.parametrize("looks", [False, True], ids=["in groups", "one by one"])
def test_the_variance_of_gradients_is_that_of_pairs_of_reals(looks: bool) -> None:
    torch.manual_seed(0)
    model, x, y = Waves(looks), normal(7, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    blocks = layers_of(model)
    asked = objective(model, nn.CrossEntropyLoss(), x, y)
    found = ask(asked, Needs(variance=True), blocks).variance
    assert found is not None
    losses = F.cross_entropy(model(x), y, reduction="none")
    parameters = list(blocks.parameters.values())
    each = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    flat = torch.stack([blocks.pack(dict(zip(blocks.parameters, g, strict=True))).flat for g in each])
    assert_close(found.total, flat.var(0).sum())
    assert_close(found.along, (flat @ flat.mean(0)).var())
