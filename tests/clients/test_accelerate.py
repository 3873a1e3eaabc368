"""accelerate's prepare, accumulate, clip_grad_norm_ and save_state make the plain loop's steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.nn import functional as F

from tests.clients.small import (
    CLIP,
    METHODS,
    Batch,
    batches,
    classification,
    decaying,
    made,
    network,
    require_equal,
    require_treated,
    trained,
)


@pytest.fixture(autouse=True)
def _one_process_state() -> Iterator[None]:
    """accelerate's settings are the process's: none is left to the next test."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def accelerated_loop(
    accelerator: Accelerator,
    prepared: Sequence[Any],
    data: Sequence[Batch],
    *,
    clip: float | None = None,
) -> None:
    """The loop of accelerate's guide; ``prepared``: model, optimizer and perhaps a scheduler."""
    model, optimizer, *schedulers = prepared
    for batch in data:
        with accelerator.accumulate(model):
            accelerator.backward(classification(model, batch))
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
            optimizer.zero_grad()


def started(
    method: str, *, accumulate: int = 1, schedule: bool = False, **options: Any
) -> tuple[Accelerator, nn.Module, tuple[Any, ...]]:
    """An accelerator, ``network()``, and that network with its optimizer as ``prepare`` hands them back."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **options)
    model = network()
    optimizer = made(method, model)
    require_treated(optimizer)
    given = (model, optimizer, decaying(optimizer)) if schedule else (model, optimizer)
    return accelerator, model, accelerator.prepare(*given)


@pytest.mark.parametrize("method", METHODS)
def test_prepared_steps_are_plain_ones(method: str) -> None:
    accelerator, model, prepared = started(method, schedule=True)
    accelerated_loop(accelerator, prepared, batches(6))
    require_equal(model, trained(method, batches(6), schedule=True), network())


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_and_clipping_are_the_plain_loops(method: str) -> None:
    accelerator, model, prepared = started(method, accumulate=3)
    accelerated_loop(accelerator, prepared, batches(12), clip=CLIP)
    require_equal(model, trained(method, batches(12), accumulate=3, clip=CLIP), network())


@pytest.mark.parametrize("method", METHODS)
def test_a_state_saved_and_loaded_elsewhere_goes_on_alike(method: str, tmp_path: Path) -> None:
    data = batches(9)
    accelerator, _, prepared = started(method, schedule=True)
    accelerated_loop(accelerator, prepared, data[:5], clip=CLIP)
    accelerator.save_state(str(tmp_path / "state"))
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, model, prepared = started(method, schedule=True)
    nn.init.zeros_(model[0].weight)  # type: ignore[index]  # what is not brought back would show
    accelerator.load_state(str(tmp_path / "state"))
    accelerated_loop(accelerator, prepared, data[5:], clip=CLIP)
    require_equal(model, trained(method, data, clip=CLIP, schedule=True), network())


@pytest.mark.parametrize("method", METHODS)
def test_loading_goes_back_to_what_was_saved(method: str, tmp_path: Path) -> None:
    """The steps between saving and loading leave no trace."""
    data = batches(8)
    accelerator, model, prepared = started(method)
    accelerated_loop(accelerator, prepared, data[:3])
    accelerator.save_state(str(tmp_path / "state"))
    accelerated_loop(accelerator, prepared, data[5:])
    accelerator.load_state(str(tmp_path / "state"))
    accelerated_loop(accelerator, prepared, data[3:])
    require_equal(model, trained(method, data), network())


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_is_autocast(method: str) -> None:
    accelerator, model, prepared = started(method, mixed_precision="bf16")
    accelerated_loop(accelerator, prepared, batches(6))

    def autocast(plain: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output = plain(batch[0])
        return F.cross_entropy(output.float(), batch[1])

    require_equal(model, trained(method, batches(6), loss_of=autocast), network())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_prepared_before_its_optimizer_is_made(method: str) -> None:
    """The order of older guides: ``prepare(model)``, then the optimizer of what came back."""
    accelerator = Accelerator(cpu=True)
    model = network()
    wrapped = accelerator.prepare(model)
    prepared = (wrapped, accelerator.prepare(made(method, wrapped)))
    accelerated_loop(accelerator, prepared, batches(6))
    require_equal(model, trained(method, batches(6)), network())
