"""GGN products of networks that attend: fused kernels elsewhere, matrix products in here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from curvlab.objective.products import unfused_attention
from curvlab.objective.supervised import objective
from curvlab.protocols.needs import Needs
from curvlab.testing.asserts import assert_close, assert_self_adjoint
from curvlab.testing.reference import ggn
from tests.objective.asking import DTYPE, ask, layers_of, normal


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


def made(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(2)
    return build().to(DTYPE), normal(5, 3, 4), torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("name", NETWORKS)
def test_products_with_attention_are_those_of_the_dense_matrix(name: str) -> None:
    model, x, y = made(NETWORKS[name])
    blocks = layers_of(model)
    truth = ggn(model, nn.CrossEntropyLoss(), x, y, blocks)
    seen = ask(objective(model, nn.CrossEntropyLoss(), x, y), Needs(products=2), blocks)
    assert seen.ggn is not None
    for seed in (0, 1):
        v = seen.gradient.clone()
        v.flat.copy_(normal(len(v.flat), seed=seed))
        assert_close((seen.ggn @ v).flat, truth @ v.flat)


def test_dropped_attention_weights_are_the_same_in_both_directions() -> None:
    model, x, y = made(lambda: Attending(dropped=0.5))
    blocks = layers_of(model)
    seen = ask(objective(model, nn.CrossEntropyLoss(), x, y), Needs(products=1), blocks)
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


def test_only_products_go_without_the_fused_kernel() -> None:
    model, x, y = made(Attending)
    ours = objective(model, nn.CrossEntropyLoss(), x, y)
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
