"""The transformer: its parts, what layers see of it, and how it attends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvlab.protocols.needs import Labels
from curvlab.tasks.fashion_vit import FashionVit
from curvlab.tasks.vit import Attention, VisionTransformer
from curvlab.testing.asserts import assert_close
from tests.engine.composed import optimizer
from tests.objectives.asking import ask, layers_of, normal, wanting
from tests.tasks.networks import asked, network, pictures

SMALL = FashionVit(dim=8, depth=2, heads=2)  # 49 tokens


def widths(task: FashionVit) -> dict[str, tuple[int, int]]:
    """Every layer's inputs, the bias's among them, and outputs."""
    found = {"embed": (task.patch**2 + 1, task.dim), "head": (task.dim + 1, 10)}
    hidden = task.mlp_ratio * task.dim
    for k in range(task.depth):
        found |= {f"blocks.{k}.attention.{n}": (task.dim + 1, task.dim) for n in ("q", "k", "v", "out")}
        found |= {f"blocks.{k}.fc1": (task.dim + 1, hidden), f"blocks.{k}.fc2": (hidden + 1, task.dim)}
    return found


@pytest.mark.parametrize(
    "task", [FashionVit(), SMALL, FashionVit(patch=14, dim=6, depth=1, heads=3, mlp_ratio=5)], ids=str
)
def test_parameters_are_as_many_as_the_widths_say(task: FashionVit) -> None:
    linear = sum(i * o for i, o in widths(task).values())
    norms = (2 * task.depth + 1) * 2 * task.dim
    tokens = (28 // task.patch) ** 2
    assert sum(p.numel() for p in task.model().parameters()) == linear + norms + tokens * task.dim


def test_as_it_is_it_has_49_tokens_and_539_914_parameters() -> None:
    model = FashionVit().model()
    assert sum(p.numel() for p in model.parameters()) == 539_914
    assert model.position.shape == (49, 128)
    assert [b.attention.heads for b in model.blocks] == [4, 4, 4, 4]


def test_every_linear_layer_but_the_head_sees_the_49_tokens() -> None:
    model = network(SMALL)
    seen = ask(asked(model), wanting(Labels.DATA, Labels.MODEL), layers_of(model))
    for kind in (Labels.DATA, Labels.MODEL):
        norms = {name for name in seen.layers[kind] if "norm" in name}
        assert seen.layers[kind].keys() - norms == widths(SMALL).keys()
        for name, (inputs, outputs) in widths(SMALL).items():
            (stats,) = seen.layers[kind][name]
            tokens = 1 if name == "head" else 49
            assert stats.inputs.shape == (12, tokens, inputs)
            assert stats.grads is not None
            assert stats.grads.shape == (1, 12, tokens, outputs)


def test_positions_go_to_the_fallback_and_nothing_else() -> None:
    model = network(SMALL)
    ours = optimizer("kfac", model)
    ours.step(asked(model))  # which shows how they are used
    rows = {row.parameter: row.treatment for row in ours.coverage()}
    left = {name for name, treatment in rows.items() if treatment == "fallback"}
    assert left == {"position"}
    assert set(rows.values()) == {"fallback", "kfac"}


def test_a_token_is_a_patch_in_reading_order() -> None:
    model = VisionTransformer(side=6, patch=3, dim=4, depth=1, heads=1, hidden=4, classes=2)
    image = torch.arange(36.0).view(1, 1, 6, 6)
    tokens = model.cut(image).mT[0]
    for k, (row, column) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        assert torch.equal(tokens[k], image[0, 0, row : row + 3, column : column + 3].flatten())


def test_without_positions_the_order_of_patches_is_nothing_to_the_logits() -> None:
    """A mean over tokens that attend to each other alike; with positions it is something."""
    model, (x, _) = network(SMALL), pictures(3)
    turned = x.roll(8, dims=3)  # two patches to the right
    assert not torch.allclose(model(x), model(turned), rtol=1e-4, atol=1e-8)
    nn.init.zeros_(model.position)
    assert_close(model(turned), model(x), dimension=49 * 8)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_the_softmax_of_scaled_products_head_by_head(heads: int) -> None:
    torch.manual_seed(0)
    attention, x = Attention(8, heads).double(), normal(3, 5, 8)
    q, k, v = (layer(x) for layer in (attention.q, attention.k, attention.v))
    parts, width = [], 8 // heads
    for h in range(heads):
        s = slice(h * width, (h + 1) * width)
        weights = (q[..., s] @ k[..., s].mT / width**0.5).softmax(-1)
        parts.append(weights @ v[..., s])
    assert_close(attention(x), attention.out(torch.cat(parts, -1)))


def test_positions_start_small_and_are_drawn_from_the_global_generator() -> None:
    first, again, other = (network(FashionVit(), seed).position.detach() for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # five standard errors of a standard deviation of 49 · 128 normal numbers
    assert abs(float(first.std()) / 0.02 - 1) < 5 / (2 * 49 * 128) ** 0.5
