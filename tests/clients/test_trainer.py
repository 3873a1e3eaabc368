"""Hugging Face's Trainer makes the plain loop's steps on a language model.

Trainer clears gradients by ``model.zero_grad()``, divides the loss by the tokens of all accumulated batches,
and saves the optimizer's ``state_dict`` by ``torch.save``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import curvlab
from tests.clients.language import Tokens, language_loop, llama, sentences, stacked
from tests.clients.small import CLIP, METHODS, decaying, made, require_equal, require_treated

SIZE = 3


class InOrder(Trainer):
    """Batches of ``SIZE`` sentences in their order."""

    def get_train_dataloader(self) -> Any:
        found: DataLoader[Tokens] = DataLoader(self.train_dataset, batch_size=SIZE, collate_fn=stacked)
        return self.accelerator.prepare(found)


def fitted(
    method: str, data: list[Tokens], folder: Path, *, resume: str | None = None, **arguments: Any
) -> nn.Module:
    """A model trained by Trainer, quietly, with a rate that decays."""
    model = llama()
    optimizer = made(method, model, reduction="mean-tokens")
    require_treated(optimizer)
    if resume is not None:
        nn.init.zeros_(model.lm_head.weight)  # what the checkpoint does not bring back would show
    settings = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "per_device_train_batch_size": SIZE,
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
        **arguments,
    }
    trainer = InOrder(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=data,  # type: ignore[arg-type]
        optimizers=(optimizer, decaying(optimizer)),
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def looped(method: str, data: list[Tokens], **options: Any) -> nn.Module:
    """The same by the plain loop."""
    model = llama()
    optimizer = made(method, model, reduction="mean-tokens")
    language_loop(model, optimizer, data, size=SIZE, scheduler=decaying(optimizer), **options)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_training_is_the_plain_loop(method: str, tmp_path: Path) -> None:
    data = sentences(5 * SIZE)
    require_equal(fitted(method, data, tmp_path), looped(method, data), llama())


@pytest.mark.parametrize("ignored", [False, True], ids=["all tokens", "ignored tokens"])
@pytest.mark.parametrize("method", METHODS)
def test_accumulation_and_clipping_are_the_plain_loops(method: str, ignored: bool, tmp_path: Path) -> None:
    data = sentences(8 * SIZE, ignored=ignored)
    found = fitted(method, data, tmp_path, gradient_accumulation_steps=2, max_grad_norm=CLIP)
    require_equal(found, looped(method, data, accumulate=2, clip=CLIP), llama())


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_is_one_large_batch(method: str, tmp_path: Path) -> None:
    data = sentences(8 * SIZE)
    found = fitted(method, data, tmp_path, gradient_accumulation_steps=2)
    model = llama()
    optimizer = made(method, model, reduction="mean-tokens")
    language_loop(model, optimizer, data, size=2 * SIZE, scheduler=decaying(optimizer))
    require_equal(found, model, llama())


@pytest.mark.parametrize("method", METHODS)
def test_training_resumed_is_training_that_never_stopped(method: str, tmp_path: Path) -> None:
    """Stopped after three of six steps, inside a cadence of curvature."""
    data = sentences(12 * SIZE)
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": CLIP}
    fitted(method, data, tmp_path, max_steps=3, save_strategy="steps", save_steps=3, **options)
    found = fitted(method, data, tmp_path, max_steps=6, resume=str(tmp_path / "checkpoint-3"), **options)
    require_equal(found, looped(method, data, accumulate=2, clip=CLIP), llama())


@pytest.mark.parametrize("method", METHODS)
def test_recomputed_activations_are_the_same_rows(method: str, tmp_path: Path) -> None:
    """``gradient_checkpointing`` calls every layer of a block again during the backward pass."""
    data = sentences(5 * SIZE)
    found = fitted(method, data, tmp_path, gradient_checkpointing=True)
    require_equal(found, looped(method, data), llama())


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_is_autocast(method: str, tmp_path: Path) -> None:
    data = sentences(4 * SIZE)
    found = fitted(method, data, tmp_path, bf16=True)
    model = llama()
    optimizer = made(method, model, reduction="mean-tokens")
    inner = model.forward
    model.forward = torch.autocast("cpu", torch.bfloat16)(inner)  # type: ignore[method-assign]
    language_loop(model, optimizer, data, size=SIZE, scheduler=decaying(optimizer))
    require_equal(found, model, llama())


def test_an_average_is_evaluated_and_saved_and_training_goes_on_as_without(
    tmp_path: Path,
) -> None:
    """Trainer calls ``eval()`` and ``train()`` where an optimizer has them, and saves after evaluations."""
    data = sentences(6 * SIZE)
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        model = llama()
        optimizer = curvlab.optimizer("adamw", model, lr=1e-3, average={"use": "ema", "decay": 0.5})
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            per_device_train_batch_size=SIZE,
            max_steps=6,
            eval_strategy="steps",
            eval_steps=3,
            save_steps=3,
        )
        trainer = InOrder(
            model=model,
            args=arguments,
            train_dataset=data,  # type: ignore[arg-type]
            eval_dataset=data,  # type: ignore[arg-type]
            data_collator=stacked,
            optimizers=(optimizer, decaying(optimizer)),
        )
        trainer.train(resume_from_checkpoint=resume)
        averaged = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer.train()  # the last evaluation was followed by no step
        ends.append((averaged, nn.utils.parameters_to_vector(model.parameters()).detach().clone()))
    alone = llama()
    without = curvlab.optimizer("adamw", alone, lr=1e-3)
    language_loop(alone, without, data, size=SIZE, scheduler=decaying(without))
    torch.testing.assert_close(ends[0][1], nn.utils.parameters_to_vector(alone.parameters()).detach())
    assert not torch.equal(*ends[0])
    for whole, resumed in zip(*ends, strict=True):
        torch.testing.assert_close(whole, resumed)
