"""The convolutional network and the transformer: every kind of method trains them and comes back."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.objectives.supervised import objective
from curvlab.protocols.needs import Needs
from curvlab.protocols.sampler import Draw
from curvlab.tasks.fashion_mnist import labeled
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab.testing.reference import ggn
from tests.engine.composed import optimizer, same
from tests.objectives.asking import ask, layers_of
from tests.tasks.networks import SMALL, asked, network, pictures, train

EXAMPLES = Path(__file__).parents[2] / "examples"

#: methods with what makes them quick here: one of first order, and both ways in which labels come
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {"lr": 1e-2}),
    "kfac, labels of the model": ("kfac", {"lr": 1e-2, "refresh": 3}),
    "kfac, labels of the data": ("kfac", {"lr": 1e-2, "refresh": 3, "labels": "data"}),
}

every_network = pytest.mark.parametrize("name", SMALL)
every_method = pytest.mark.parametrize("method", METHODS)


@every_network
@every_method
def test_a_method_brings_the_loss_of_a_batch_down(name: str, method: str) -> None:
    """Warnings are errors here: every layer's calls explain its gradient."""
    chosen, knobs = METHODS[method]
    model = network(SMALL[name])
    losses = train(model, optimizer(chosen, model, **knobs), 15)
    assert losses[-1] < 0.98 * losses[0]


@every_network
@pytest.mark.parametrize("method", ["adamw", "kfac, labels of the data"])
def test_a_plain_loop_brings_the_loss_of_a_batch_down(name: str, method: str) -> None:
    chosen, knobs = METHODS[method]
    model, (x, y) = network(SMALL[name]), pictures()
    opt, losses = optimizer(chosen, model, **knobs), []
    for _ in range(15):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.98 * losses[0]


@every_network
@every_method
def test_a_seed_gives_one_course_of_training(name: str, method: str) -> None:
    chosen, knobs = METHODS[method]

    def trained(seed: int) -> nn.Module:
        model = network(SMALL[name], seed)
        train(model, optimizer(chosen, model, seed=seed, **knobs), 4)
        return model

    first = trained(0)
    assert same(first, trained(0))
    assert not same(first, trained(1))


@every_network
@every_method
def test_training_goes_on_bit_for_bit_after_its_state_was_saved(name: str, method: str) -> None:
    chosen, knobs = METHODS[method]
    model = network(SMALL[name])
    opt = optimizer(chosen, model, **knobs)
    train(model, opt, 4)
    file, twin = io.BytesIO(), copy.deepcopy(model)
    torch.save(opt.state_dict(), file)
    file.seek(0)
    other = optimizer(chosen, twin, seed=99, **knobs)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert train(twin, other, 4) == train(model, opt, 4)
    assert same(twin, model)


@every_network
def test_products_are_those_of_the_dense_matrix(name: str) -> None:
    model, (x, y) = network(SMALL[name]), pictures(4)
    blocks = layers_of(model)
    truth = ggn(model, nn.CrossEntropyLoss(), x, y, blocks)
    for micro_batch in (None, 3):
        ours = objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch)
        seen = ask(ours, Needs(products=1), blocks)
        assert seen.ggn is not None
        v = seen.gradient.clone()
        v.flat.copy_(normal(len(v.flat), seed=3))
        assert_close((seen.ggn @ v).flat, truth @ v.flat)


@every_network
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_precision_trains(name: str, dtype: torch.dtype) -> None:
    model, (x, _) = network(SMALL[name], dtype=dtype), pictures(dtype=dtype)
    assert model(x).dtype == dtype
    opt, batch = torch.optim.SGD(model.parameters(), lr=0.05), asked(model)
    losses = [float(opt.step(batch)) for _ in range(15)]
    assert losses[-1] < 0.98 * losses[0]
    assert all(p.dtype == dtype and bool(p.isfinite().all()) for p in model.parameters())


@every_network
def test_low_precision_rounds_the_same_network(name: str) -> None:
    """bfloat16 keeps eight bits: two digits of an output of unit order."""
    task, (x, _) = SMALL[name], pictures()
    exact, rounded = network(task)(x), network(task, dtype=torch.bfloat16)(x.bfloat16())
    torch.testing.assert_close(rounded.double(), exact, rtol=0.05, atol=0.02)


@every_network
def test_an_examples_output_depends_on_that_example_alone(name: str) -> None:
    """So that a mini-batch's loss is a mean of functions of θ, as curvature supposes."""
    model, (x, _) = network(SMALL[name]), pictures()
    together = model(x)
    alone = torch.cat([model(x[k : k + 1]) for k in range(len(x))])
    assert_close(together, alone)


def upright(pixels: Tensor) -> Tensor:
    return pixels.reshape(-1, 1, 28, 28)


@every_network
def test_images_are_pictures_of_one_color_in_the_order_of_the_files(name: str, fashion: str) -> None:
    task = type(SMALL[name])(root=fashion)  # type: ignore[call-arg]
    work = task.workload(task.model(), dtype=torch.float32, device=torch.device("cpu"))
    few = torch.tensor([5, 0])
    inputs, targets = work.objective(Draw(few, few, few)).gradient_sample  # type: ignore[attr-defined]
    rows = labeled(Path(fashion), "train")
    assert torch.equal(inputs, upright(rows.inputs)[few])
    assert torch.equal(targets, rows.targets[few])


@every_network
def test_the_example_trains(name: str, fashion: str, tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    small.write_text(f'report = "quiet"\n[run]\nepochs = 0.5\n[task]\nroot = "{fashion}"\nbatch_size = 16\n')
    done = curvlab.train([EXAMPLES / f"{name}.toml", small], out=tmp_path)
    assert done.summary["steps"] == 3
    assert done.summary["exit_reason"] == "finished"
