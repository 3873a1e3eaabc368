"""GGN products: both ways of making them, every kind of layer, attention without its fused kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.func import functional_call, jvp, vjp
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.products import GaussNewton, unfused_attention
from curvlab.objectives.supervised import objective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.needs import Needs
from curvlab.testing.asserts import assert_close, assert_self_adjoint
from curvlab.testing.reference import ggn
from tests.objectives.asking import DTYPE, MODELS, Recurrent, ask, layers_of, normal
from tests.objectives.asking import made as model_of


class Attending(nn.Module):
    """Torch's function of attention between layers, optionally causal or with weights dropped."""

    def __init__(self, causal: bool = False, dropped: float = 0.0) -> None:
        super().__init__()
        self.causal, self.dropped = causal, dropped
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (2, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropped, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2).mean(1))


class SelfAttention(nn.Module):
    """Torch's module of attention, which takes a fast path in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


class Encoder(nn.Module):
    """Torch's whole block, with a fast path of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "function": Attending,
    "causal": lambda: Attending(causal=True),
    "module": SelfAttention,
    "module in evaluation mode": lambda: SelfAttention().eval(),
    "block": Encoder,
    "block in evaluation mode": lambda: Encoder().eval(),
}


cut = pytest.mark.parametrize("micro_batch", [None, 3], ids=["whole", "by threes"])


def made(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(2)
    return build().to(DTYPE), normal(5, 3, 4), torch.tensor([0, 1, 2, 3, 0])


@cut
@pytest.mark.parametrize("name", NETWORKS)
def test_products_with_attention_are_those_of_the_dense_matrix(name: str, micro_batch: int | None) -> None:
    model, x, y = made(NETWORKS[name])
    blocks = layers_of(model)
    truth = ggn(model, nn.CrossEntropyLoss(), x, y, blocks)
    asked = objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch)
    seen = ask(asked, Needs(products=2), blocks, step=0)
    assert seen.ggn is not None
    for seed in (0, 1):
        v = seen.gradient.clone()
        v.flat.copy_(normal(len(v.flat), seed=seed))
        assert_close((seen.ggn @ v).flat, truth @ v.flat)


@cut
def test_dropped_attention_weights_are_the_same_in_both_directions(micro_batch: int | None) -> None:
    model, x, y = made(lambda: Attending(dropped=0.5))
    blocks = layers_of(model)
    asked = objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch)
    seen = ask(asked, Needs(products=1), blocks)
    assert seen.ggn is not None
    assert_self_adjoint(seen.ggn, seen.gradient, psd=True)


class Operations(TorchDispatchMode):
    """The names of torch's operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))

    @property
    def fused(self) -> set[str]:
        """Those that are attention in one kernel, and its derivative."""
        return {n for n in self.names if "attention" in n and "math" not in n}


@cut
def test_only_products_go_without_the_fused_kernel(micro_batch: int | None) -> None:
    model, x, y = made(Attending)
    ours = objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch)
    with Operations() as ordinary:
        seen = ask(ours, Needs(products=1), layers_of(model))
    assert any("backward" in name for name in ordinary.fused)
    assert any("backward" not in name for name in ordinary.fused)
    assert seen.ggn is not None
    with Operations() as product:
        seen.ggn @ seen.gradient
    assert product.names
    assert not product.fused
    with Operations() as afterwards:
        ours()
    assert afterwards.fused == ordinary.fused


# every other layer


def from_scratch(model: nn.Module, x: Tensor, y: Tensor, blocks: Blocks, v: BlockVector) -> BlockVector:
    """The slow twin: forward mode, the Hessian of a squared error, reverse mode; nothing kept."""
    at = {name: p.detach() for name, p in blocks.parameters.items()}

    def forward(at: dict[str, Tensor]) -> Tensor:
        return functional_call(model, at, (x,))

    tangents = {name: t.contiguous() for name, t in blocks.assembled(v).items()}
    with unfused_attention():
        outputs, pushed = jvp(forward, (at,), (tangents,))
        return blocks.pack(vjp(forward, at)[1](pushed * (2.0 / outputs.numel()))[0])


@cut
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_slow_twin_and_of_the_dense_matrix(
    name: str, micro_batch: int | None
) -> None:
    model, x, y = model_of(name)
    blocks = layers_of(model)
    asked = objective(model, nn.MSELoss(), x, y, micro_batch=micro_batch)
    seen = ask(asked, Needs(products=3), blocks)
    assert seen.ggn is not None
    truth = ggn(model, nn.MSELoss(), x, y, blocks)
    for seed in (0, 1):
        v = seen.gradient.clone()
        v.flat.copy_(normal(len(v.flat), seed=seed))
        before = v.clone()
        mine = seen.ggn @ v
        assert torch.equal(v.flat, before.flat)
        assert_close(mine.flat, from_scratch(model, x, y, blocks, v).flat, dimension=100, what="slow twin")
        assert_close(mine.flat, truth @ v.flat, what="dense")
    assert_self_adjoint(seen.ggn, seen.gradient, psd=True)


@cut
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_products_of_recurrent_networks(
    kind: type[nn.RNNBase], dtype: torch.dtype, micro_batch: int | None
) -> None:
    torch.manual_seed(0)
    model, x, y = Recurrent(kind).to(dtype), normal(7, 3, 4).to(dtype), torch.arange(7) % 3
    blocks = layers_of(model)
    asked = objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch)
    seen = ask(asked, Needs(products=1), blocks)
    assert seen.ggn is not None
    mine = seen.ggn @ seen.gradient
    v = seen.gradient.to(torch.float64)
    truth = ggn(model.double(), nn.CrossEntropyLoss(), x.double(), y, blocks)
    assert_close(mine.flat, truth @ v.flat, dimension=100)


class Constant(nn.Module):
    """Answers without looking at its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3]


@cut
def test_outputs_that_no_parameter_moves_have_no_curvature(micro_batch: int | None) -> None:
    model, x = Constant().double(), normal(7, 4)
    blocks = layers_of(model)
    operator = objective(model, nn.MSELoss(), x, x[:, :3], micro_batch=micro_batch)
    curvature = GaussNewton(model, blocks, operator._batches(operator.curvature_sample), operator.randomness)
    assert not (curvature @ blocks.read()).flat.any()


def test_a_sample_of_one_micro_batch_is_passed_forward_once() -> None:
    model, x, y = model_of("in-place activation")
    seen = ask(objective(model, nn.MSELoss(), x, y), Needs(products=3), layers_of(model))
    assert seen.ggn is not None
    calls = []
    model.register_forward_hook(lambda m, args, out: calls.append(len(out)))
    for _ in range(3):
        seen.ggn @ seen.gradient
    assert calls == [7]


@pytest.mark.parametrize("fast", [True, False])
def test_torchs_choice_of_kernels_comes_back_even_after_an_error(fast: bool) -> None:
    def chosen() -> tuple[bool, ...]:
        cuda = torch.backends.cuda
        return (mha.get_fastpath_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled())

    def fail() -> None:
        with unfused_attention():
            assert chosen() == (False, False, False)
            raise RuntimeError("boom")

    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(fast)
    try:
        outside = chosen()
        with pytest.raises(RuntimeError, match="boom"):
            fail()
        assert chosen() == outside
        assert outside[0] is fast
    finally:
        mha.set_fastpath_enabled(before)
