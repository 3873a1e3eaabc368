"""Low-rank adapters by peft: the adapters' layers are trained by the method itself, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from tests.clients.language import language_loop, llama, sentences
from tests.clients.small import METHODS, made, require_equal

RANK, ALPHA, TARGETS = 2, 4, ("q_proj", "v_proj", "up_proj")


def adapted(model: nn.Module) -> PeftModel:
    """A model whose targets have adapters, seeded, with no dropout."""
    torch.manual_seed(1)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGETS))
    return get_peft_model(model, settings)


class ByHand(nn.Module):
    """W x + (α/r) B A x, with W frozen: what peft's layer computes."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.a = nn.Linear(frozen.in_features, RANK, bias=False)
        self.b = nn.Linear(RANK, frozen.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + self.b(self.a(x)) * (ALPHA / RANK)


def by_hand(reference: PeftModel) -> nn.Module:
    """The model of ``reference`` written without peft, with its adapters' present values."""
    model = llama().requires_grad_(False)
    values = get_peft_model_state_dict(reference)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in TARGETS:
            mine = ByHand(module)
            mine.a.weight.data.copy_(values[f"base_model.model.{name}.lora_A.weight"])
            mine.b.weight.data.copy_(values[f"base_model.model.{name}.lora_B.weight"])
            model.set_submodule(name, mine)
    return model


def adapters(model: nn.Module) -> nn.Module:
    """The trained weights in the model's order, under names that both ways of writing it share."""
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(TARGETS)
    return nn.ParameterList(trained)


def train(method: str, model: nn.Module, **knobs: Any) -> Any:
    optimizer = made(method, model, reduction="mean-tokens", **knobs)
    language_loop(model, optimizer, sentences(12), size=3, accumulate=2)
    return optimizer


@pytest.mark.parametrize("method", METHODS)
def test_the_method_itself_trains_the_adapters_and_nothing_else(method: str) -> None:
    model = adapted(llama())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = train(method, model)
    for row in optimizer.coverage():
        p = dict(model.named_parameters())[row.parameter]
        assert row.treatment == (method if p.requires_grad else "frozen")
        assert torch.equal(p, before[row.parameter]) is not p.requires_grad, row.parameter
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_adapters_are_two_linear_layers(method: str) -> None:
    model, start = adapted(llama()), adapted(llama())
    plain = by_hand(model)
    train(method, model)
    train(method, plain)
    require_equal(adapters(model), adapters(plain), adapters(start))


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_saved_and_loaded_goes_on_alike(method: str, tmp_path: Path) -> None:
    """By ``save_pretrained`` and ``from_pretrained``, with the optimizer's ``state_dict`` beside it."""
    data, model = sentences(18), adapted(llama())
    optimizer = made(method, model, reduction="mean-tokens")
    language_loop(model, optimizer, data[:9], size=3)
    model.save_pretrained(str(tmp_path))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    language_loop(model, optimizer, data[9:], size=3)

    again = PeftModel.from_pretrained(llama(), str(tmp_path), is_trainable=True)
    other = made(method, again, reduction="mean-tokens")
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    language_loop(again, other, data[9:], size=3)
    require_equal(adapters(again), adapters(model), adapters(adapted(llama())))
