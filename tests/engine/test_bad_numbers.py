"""Numbers that are not finite: nothing of them is written, kept by buffers, or given out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import curvlab
from curvlab.errors import Diverged
from tests.engine.composed import batch, network, same

METHODS = ("sgd", "adamw", "foof", "muon", "shampoo", "singd")


@pytest.mark.parametrize("rate", [1e30, 1e37, 3e38])
@pytest.mark.parametrize("name", METHODS)
def test_a_rate_that_overflows_the_parameters_is_refused_before_the_write(name: str, rate: float) -> None:
    model = network(dtype=torch.float32)
    opt = curvlab.optimizer(name, model, lr=rate, weight_decay=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    x, y = batch(0)
    (1e9 * F.cross_entropy(model(x.float()), y)).backward()
    try:
        opt.step()
    except Diverged:
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    else:
        assert name != "sgd" or rate == 1e30, "1e9 times 1e37 is beyond float32"
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("name", ["adamw", "kfac", "hf-gn", "lbfgs"])
def test_a_bad_batch_leaves_the_averages_of_batch_normalization_as_they_were(name: str) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()

    a, b = made(), made()
    one, other = curvlab.optimizer(name, a), curvlab.optimizer(name, b)
    for k in range(3):
        x, y = batch(k)
        if k == 1:
            bad = x.clone()
            bad[0, 0] = float("nan")
            with pytest.raises(Diverged):
                one.step(curvlab.objective(a, nn.CrossEntropyLoss(), bad, y))
        for model, opt in ((a, one), (b, other)):
            opt.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    assert same(a, b)
    for p, q in zip(a.buffers(), b.buffers(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["adamw", "kfac"])
def test_a_state_that_is_not_finite_is_neither_given_out_nor_taken(name: str) -> None:
    model, (x, y) = network(), batch(0)
    opt = curvlab.optimizer(name, model)
    opt.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    good = opt.state_dict()
    state = {k: {p: t.clone() for p, t in entry.items()} for k, entry in good["state"].items()}
    path = next(p for p, t in state[0].items() if t.is_floating_point())
    state[0][path].view(-1)[0] = float("inf")
    with pytest.raises(Diverged, match="not finite"):
        opt.load_state_dict({**good, "state": state})
    live = next(t for t in opt.state[next(model.parameters())].values() if t.is_floating_point())
    live.view(-1)[0] = float("nan")
    with pytest.raises(Diverged, match="returns no state that is not finite"):
        opt.state_dict()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.net(x) * scale


@pytest.mark.parametrize("name", ["adamw", "kfac", "hf-gn"])
@pytest.mark.parametrize("how", ["in order", "by name"])
def test_inputs_of_a_model_of_several_arguments_are_spread(name: str, how: str) -> None:
    model, (x, y) = Pair().double(), batch(0)
    scale = torch.full((8, 1), 2.0, dtype=torch.float64)
    inputs = (x, scale) if how == "in order" else {"scale": scale, "x": x}
    opt = curvlab.optimizer(name, model)
    loss = opt.step(curvlab.objective(model, nn.CrossEntropyLoss(), inputs, y))
    with torch.no_grad():
        assert float(loss) == pytest.approx(float(F.cross_entropy(Pair().double()(x, scale), y)))
