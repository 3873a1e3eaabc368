"""Statistics of the first examples alone: a bound on what an evaluation holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from curvlab.objectives.supervised import objective
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels
from tests.objectives.asking import EVERY, ask, layers_of, made, wanting

SQUARED = nn.MSELoss()


def gradient(seen: Evaluation) -> Tensor:
    return seen.gradient.flat


def kept(seen: Evaluation, kind: Labels) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Inputs and gradients by block."""
    return {name: (stats.inputs, stats.grads) for name, (stats,) in seen.layers[kind].items()}


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    "name", ["in-place activation", "layer called twice", "convolutions", "shared positions"]
)
def test_whole_micro_batches_are_listened_to_until_there_are_enough(
    name: str, kind: Labels, factored: bool
) -> None:
    """Of 7 examples in micro-batches of 2, 3 take two of them; the gradient is of all 7 all the same."""
    model, x, y = made(name)
    blocks = layers_of(model)
    needs = wanting(kind, factored=factored)
    asked = objective(model, SQUARED, x, y, micro_batch=2)
    everything = ask(asked, needs, blocks)
    few = ask(asked, replace(needs, layer_examples=3), blocks)
    assert few.examples == everything.examples == 7
    torch.testing.assert_close(gradient(few), gradient(everything))
    for block, (inputs, grads) in kept(few, kind).items():
        whole_inputs, whole_grads = kept(everything, kind)[block]
        assert torch.equal(inputs, whole_inputs[:4])
        assert (grads is None) == (whole_grads is None)
        if grads is not None and whole_grads is not None:
            assert torch.equal(grads, whole_grads[:, :4])


@pytest.mark.parametrize("enough", [0, 7, 100])
def test_all_of_them_is_what_none_said_and_what_too_many_say(enough: int) -> None:
    model, x, y = made("layer called twice")
    asked, blocks, needs = (
        objective(model, SQUARED, x, y, micro_batch=3),
        layers_of(model),
        wanting(Labels.MODEL),
    )
    everything = kept(ask(asked, needs, blocks), Labels.MODEL)
    for block, (inputs, grads) in kept(
        ask(asked, replace(needs, layer_examples=enough), blocks), Labels.MODEL
    ).items():
        assert torch.equal(inputs, everything[block][0])
        assert grads is not None
        assert torch.equal(grads, everything[block][1])  # type: ignore[arg-type]


def test_a_layer_that_is_also_used_elsewhere_is_found_out_all_the_same() -> None:
    model, x, y = made("weight used functionally too")
    blocks = layers_of(model)
    asked = objective(model, SQUARED, x, y, micro_batch=2)
    with pytest.warns(UserWarning, match="do not explain"):
        seen = ask(asked, replace(wanting(Labels.MODEL), layer_examples=2), blocks, step=0)
    assert set(seen.layers[Labels.MODEL]) == {"out"}
    expected = torch.autograd.grad(SQUARED(model(x), y), list(model.parameters()))
    got = blocks.slots(seen.gradient)
    for (name, _), g in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(got[name], g)
