"""A fused call with the re-run's graph: values of the one, gradients of the other, faults by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_sequence

from curvlab.errors import ConfigError
from curvlab.model.capture import Capture
from curvlab.model.rerun.modules import RERUNS, draws, refusal, rerun
from curvlab.model.rerun.replacement import Generators, alike, replaced
from tests.model.recorded import Recorded
from tests.model.rerunning import gradients, tensors


@contextmanager
def replacing(model: nn.Module, recorded: Recorded | None = None) -> Iterator[list[str]]:
    """Hooks as a composite reader has them; yields the names of the layers that were replaced."""
    seen: list[str] = []
    before: dict[nn.Module, Generators | None] = {}
    handles = []
    for name, module in model.named_modules():
        if refusal(module) is not None:
            continue

        def save(module: nn.Module, args: Any, kwargs: Any) -> None:
            before[module] = Generators.of(module)

        def replace(module: nn.Module, args: Any, kwargs: Any, outputs: Any, name: str = name) -> Any:
            seen.append(name)
            captured = nullcontext() if recorded is None else Capture(module.parameters(), recorded.add)
            with captured:
                return replaced(name, module, outputs, lambda: rerun(module, args, kwargs), before[module])

        handles.append(module.register_forward_pre_hook(save, with_kwargs=True))
        handles.append(module.register_forward_hook(replace, with_kwargs=True))
    yield seen
    for handle in handles:
        handle.remove()


def models() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    torch.manual_seed(0)
    x, memory = torch.randn(4, 3, 8), torch.randn(5, 3, 8)
    return {
        "lstm": (nn.LSTM(8, 4, 2, dropout=0.3, bidirectional=True), (x,)),
        "packed": (nn.GRU(8, 4, 2, dropout=0.3), (pack_sequence([x[:, 0], x[:2, 1]]),)),
        "cell": (nn.LSTMCell(8, 4), (x[0],)),
        "attention": (nn.MultiheadAttention(8, 2, dropout=0.3), (x, memory, memory)),
        "encoder": (nn.TransformerEncoderLayer(8, 2, 16, 0.3), (x,)),
        "decoder": (nn.TransformerDecoderLayer(8, 2, 16, 0.3), (x, memory)),
        "transformer": (
            nn.Transformer(8, 2, 1, 1, 16, 0.3, batch_first=True),
            (x.transpose(0, 1), memory.transpose(0, 1)),
        ),
    }


@pytest.mark.parametrize("name", models())
def test_outputs_are_bit_for_bit_the_fused_ones_and_gradients_agree(name: str) -> None:
    model, args = models()[name]
    parameters = list(model.parameters())
    torch.manual_seed(3)
    fused = model(*args)
    drawn = torch.get_rng_state()
    with replacing(model) as seen:
        torch.manual_seed(3)
        mine = model(*args)
    assert seen
    assert torch.equal(torch.get_rng_state(), drawn)
    assert type(mine) is type(fused)
    for m, f in zip(tensors(mine), tensors(fused), strict=True):
        assert torch.equal(m, f)
        assert m.stride() == f.stride()
    for m, t in zip(gradients(mine, parameters), gradients(fused, parameters), strict=True):
        torch.testing.assert_close(m, t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models())
def test_captured_uses_make_the_gradient_of_the_whole_model(name: str) -> None:
    """As a composite reader works: inputs from the re-run, gradients from the model's own loss."""
    model, args = models()[name]
    model = model.double()
    recorded = Recorded()
    with replacing(model, recorded):
        outputs = model(*(a.double() for a in args))
    fused = [m for m in model.modules() if refusal(m) is None]
    loss = sum(y.square().sum() for y in tensors(outputs))
    recorded.assert_gradients(loss, [p for m in fused for p in m.parameters()])
    assert {use.kind for use in recorded.uses} == {"linear"}


def test_an_entry_that_is_zero_with_a_sign_or_not_finite_keeps_its_bits() -> None:
    layer = nn.RNN(2, 3, nonlinearity="relu", bias=False)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    x = torch.tensor([[[float("inf"), 1.0]], [[1.0, float("nan")]]])
    fused = layer(x)
    mine = replaced("rnn", layer, fused, lambda: rerun(layer, (x,), {}))
    for m, f in zip(mine, fused, strict=True):
        assert torch.equal(m.view(torch.int32), f.view(torch.int32))


def test_outputs_may_be_changed_in_place() -> None:
    layer, x = nn.LSTM(2, 3), torch.randn(4, 1, 2)
    with replacing(layer):
        y = layer(x)[0].relu_()
    mine = torch.autograd.grad(y.sum(), layer.weight_hh_l0)[0]
    true = torch.autograd.grad(layer(x)[0].relu().sum(), layer.weight_hh_l0)[0]
    torch.testing.assert_close(mine, true)


def test_second_derivatives_and_batched_gradients_pass() -> None:
    torch.manual_seed(0)
    layer, x = nn.GRU(2, 3).double(), torch.randn(4, 1, 2, dtype=torch.float64)
    weight = layer.weight_hh_l0

    def second(y: Tensor) -> Tensor:
        first = torch.autograd.grad(y.square().sum(), weight, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), weight)[0]

    fused = second(layer(x)[0])
    with replacing(layer):
        torch.testing.assert_close(second(layer(x)[0]), fused)
        y = layer(x)[0]
    seeds = torch.randn(5, *y.shape, dtype=torch.float64)
    rows = torch.autograd.grad(y, weight, seeds, is_grads_batched=True)[0]
    true = torch.stack([torch.autograd.grad(layer(x)[0], weight, seed)[0] for seed in seeds])
    torch.testing.assert_close(rows, true)


def test_forward_derivatives_pass() -> None:
    layer, x = nn.LSTMCell(2, 3).double(), torch.randn(4, 2, dtype=torch.float64)
    t = torch.randn(4, 2, dtype=torch.float64)

    def called(x: Tensor) -> Tensor:
        return replaced(
            "cell", layer, tuple(o.detach() for o in rerun(layer, (x,), {})), lambda: rerun(layer, (x,), {})
        )[0]

    mine = torch.func.jvp(called, (x,), (t,))[1]
    torch.testing.assert_close(mine, torch.func.jvp(lambda x: rerun(layer, (x,), {})[0], (x,), (t,))[1])


def test_a_frozen_layer_on_data_keeps_no_graph() -> None:
    layer = nn.LSTM(2, 3).requires_grad_(False)
    with replacing(layer):
        assert not layer(torch.randn(4, 1, 2))[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["lstm", "attention"])
def test_rounding_of_other_precisions_is_no_fault(kind: str, dtype: torch.dtype) -> None:
    model, args = models()[kind]
    model = model.to(dtype)
    args = tuple(a.to(dtype) for a in args)
    with replacing(model):
        y = model(*args)[0]
    assert y.dtype == dtype
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", ["lstm", "attention"])
def test_autocast_is_replayed(kind: str) -> None:
    model, args = models()[kind]
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        fused = model(*args)[0]
        with replacing(model):
            torch.manual_seed(0)
            y = model(*args)[0]
    assert torch.equal(y, fused)
    y.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_long_recurrence_in_float32_is_no_fault() -> None:
    torch.manual_seed(0)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        layer = kind(16, 32, 2)
        with replacing(layer) as seen:
            layer(torch.randn(300, 4, 16))
        assert seen


def test_other_dropout_masks_are_a_fault_that_names_the_layer() -> None:
    layer, x = nn.LSTM(2, 8, 2, dropout=0.5), torch.randn(4, 3, 2)
    with pytest.raises(ConfigError, match=r'layer "encoder.rnn": LSTM with dropout 0.5 drew other'):
        replaced("encoder.rnn", layer, layer(x), lambda: rerun(layer, (x,), {}), None)


class Noise(nn.Module):
    """A weight that is another one at every read."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.1 * torch.randn_like(weight)


def test_weights_that_change_between_two_reads_are_a_fault_that_names_the_layer() -> None:
    layer, x = nn.GRUCell(2, 3), torch.randn(4, 2)
    parametrize.register_parametrization(layer, "weight_ih", Noise())
    with pytest.raises(ConfigError, match=r'layer "cell": ParametrizedGRUCell returned other outputs'):
        replaced("cell", layer, layer(x), lambda: rerun(layer, (x,), {}))


def test_alike_tells_rounding_from_other_values() -> None:
    y = torch.tensor([3.0, -2.0, 1e-9])
    assert alike(y, y * (1 + 1e-6))
    assert not alike(y, y + 1e-2)
    assert not alike(y, y[:2])
    assert alike(y[:0], y[:0])
    assert not alike(y, y.where(y > 0, torch.nan))
    assert not alike(y.where(y > 0, torch.nan), y)
    assert not alike(1e-4 * y, 2e-4 * y)  # small outputs have small rounding
    assert not alike(y.double(), y.double() * (1 + 1e-6))


def test_draws_are_known_beforehand() -> None:
    layer = nn.LSTM(2, 3, 2, dropout=0.1)
    assert draws(layer)
    assert Generators.of(layer) is not None
    assert not draws(layer.eval())
    assert Generators.of(layer) is None
    assert not draws(nn.GRUCell(2, 3))


def test_generators_are_put_back_after_an_error() -> None:
    before = Generators.now(torch.device("cpu"))

    def fail() -> None:
        with before.replayed():
            torch.rand(3)
            raise RuntimeError("boom")

    torch.rand(5)
    now = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert torch.equal(torch.get_rng_state(), now)


class Doubled(nn.LSTM):
    """An LSTM that computes something else."""

    def forward(self, *args: Any) -> Any:
        y, state = super().forward(*args)
        return 2 * y, state


def test_only_known_forwards_are_computed_again() -> None:
    assert refusal(nn.Linear(2, 3)) == "Linear cannot be computed again from linear maps"
    assert refusal(Doubled(2, 3)) == "Doubled overrides LSTM.forward"
    with pytest.raises(ConfigError, match=r"Doubled overrides LSTM.forward\n  supported: GRU, GRUCell"):
        rerun(Doubled(2, 3), (torch.randn(1, 1, 2),), {})
    assert len(RERUNS) == 7
