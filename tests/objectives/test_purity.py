"""Random layers and buffers: trial losses and products see the function that the gradient saw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.objectives.supervised import objective
from curvlab.protocols.needs import GRADIENT_ONLY, Labels, Needs
from tests.objectives.asking import EVERY, ask, layers_of, normal, wanting


def dropping() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Linear(30, 3)).double()
    return model, normal(7, 4), torch.arange(7) % 3


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_every_evaluation_of_one_objective_sees_one_mask(micro_batch: int | None) -> None:
    model, x, y = dropping()
    blocks = layers_of(model)
    asked = objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch)
    before = asked.loss()
    torch.rand(3)  # somebody else draws in between
    first = ask(asked, wanting(Labels.DATA), blocks)
    again = ask(asked, wanting(Labels.DATA), blocks)
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(first.gradient.flat, again.gradient.flat)
    for loss in (before, asked.loss(), asked().detach()):
        torch.testing.assert_close(loss, first.loss)


def test_another_objective_sees_another_mask() -> None:
    model, x, y = dropping()
    blocks = layers_of(model)
    losses = {
        float(ask(objective(model, nn.CrossEntropyLoss(), x, y), GRADIENT_ONLY, blocks).loss)
        for _ in range(4)
    }
    assert len(losses) == 4


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_products_are_those_of_the_masked_network(micro_batch: int | None) -> None:
    model, x, y = dropping()
    blocks = layers_of(model)
    asked = objective(model, nn.MSELoss(), x, normal(7, 3, seed=1), micro_batch=micro_batch)
    seen = ask(asked, Needs(products=1), blocks)
    v = blocks.pack({n: torch.randn_like(p) for n, p in blocks.parameters.items()})
    at, eps = blocks.read(), 1e-4  # outputs are quadratic in θ: second differences are exact but for rounding

    def loss(t: float) -> float:
        return float(asked.loss(blocks.slots(at.plus(v, t))))

    # only the last layer moves: the loss is quadratic in it and its GGN is its Hessian
    for name in ("0",):
        v[name].zero_()
    second = (loss(eps) - 2 * loss(0.0) + loss(-eps)) / eps**2
    assert float(v.dot(seen.ggn @ v)) == pytest.approx(second, rel=1e-5)


def test_trial_losses_and_products_leave_the_global_random_numbers_alone() -> None:
    model, x, y = dropping()
    asked, blocks = objective(model, nn.CrossEntropyLoss(), x, y), layers_of(model)
    seen = ask(asked, Needs(products=1), blocks)
    state = torch.get_rng_state()
    asked.loss()
    asked.loss(dict(model.named_parameters()))
    seen.ggn @ blocks.read()
    assert torch.equal(torch.get_rng_state(), state)


def normalized() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    return model, normal(7, 4), torch.arange(7) % 3


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in model.named_buffers()}


def test_trial_losses_and_products_change_no_buffer() -> None:
    model, x, y = normalized()
    blocks = layers_of(model)
    asked = objective(model, nn.CrossEntropyLoss(), x, y)
    seen = ask(asked, Needs(products=1), blocks)
    before = buffers(model)
    asked.loss()
    seen.ggn @ blocks.read()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_an_evaluation_moves_buffers_as_one_forward_pass_does() -> None:
    model, x, y = normalized()
    ask(objective(model, nn.CrossEntropyLoss(), x, y), wanting(*EVERY), layers_of(model), step=0)
    mine = buffers(model)
    twin, _, _ = normalized()
    twin(x)
    assert all(torch.equal(b, mine[n]) for n, b in twin.named_buffers())
    assert int(mine["1.num_batches_tracked"]) == 1


def test_in_training_mode_the_trial_loss_is_that_of_the_batch() -> None:
    model, x, y = normalized()
    found = objective(model, nn.CrossEntropyLoss(), x, y).loss()
    torch.testing.assert_close(found, F.cross_entropy(model(x), y).detach())
