"""Lightning's automatic optimization makes the plain loop's steps.

Lightning calls ``zero_grad()`` between forward and backward, in a closure that it gives to ``step``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.clients.small import (
    CLIP,
    METHODS,
    Batch,
    batches,
    decaying,
    made,
    network,
    plain_loop,
    require_equal,
    require_treated,
    trained,
)

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Classifier(pl.LightningModule):
    """A network in a LightningModule; ``whole``: the optimizer is made from the module, and it is called."""

    def __init__(self, method: str, *, whole: bool = False, schedule: bool = False) -> None:
        super().__init__()
        self.net = network()
        self.method, self.whole, self.schedule = method, whole, schedule

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x) if self.whole else self.net(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = made(self.method, self if self.whole else self.net)
        require_treated(optimizer)
        if not self.schedule:
            return optimizer
        scheduled = {"scheduler": decaying(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduled}


def loader(data: list[Batch]) -> DataLoader[Batch]:
    """The batches as they are, in their order."""
    return DataLoader(data, batch_size=None)  # type: ignore[arg-type]


def trainer(epochs: int = 1, **options: Any) -> pl.Trainer:
    """A trainer that prints and writes nothing, unless ``options`` ask for it."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = "callbacks" in options
    return pl.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, **quiet, **options)


@pytest.mark.parametrize("whole", [False, True], ids=["network", "module"])
@pytest.mark.parametrize("method", METHODS)
def test_fit_is_the_plain_loop(method: str, whole: bool) -> None:
    module, data = Classifier(method, whole=whole), batches(6)
    trainer().fit(module, loader(data))
    require_equal(module.net, trained(method, data), network())


@pytest.mark.parametrize("method", METHODS)
def test_all_accumulated_batches_count(method: str) -> None:
    module, data = Classifier(method), [*batches(5), *batches(4, n=3)]  # the second step's differ in size
    trainer(accumulate_grad_batches=3).fit(module, loader(data))
    require_equal(module.net, trained(method, data, accumulate=3), network())


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_is_one_large_batch(method: str) -> None:
    module, data = Classifier(method), batches(12)
    trainer(accumulate_grad_batches=3).fit(module, loader(data))
    large = [
        (torch.cat([x for x, _ in data[k : k + 3]]), torch.cat([y for _, y in data[k : k + 3]]))
        for k in range(0, 12, 3)
    ]
    require_equal(module.net, trained(method, large), network())


@pytest.mark.parametrize("method", METHODS)
def test_clipping_is_clip_grad_norm(method: str) -> None:
    module, data = Classifier(method), batches(12)
    trainer(accumulate_grad_batches=2, gradient_clip_val=CLIP).fit(module, loader(data))
    require_equal(module.net, trained(method, data, accumulate=2, clip=CLIP), network())


@pytest.mark.parametrize("method", METHODS)
def test_manual_optimization_is_the_plain_loop(method: str) -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Batch, index: int) -> None:  # type: ignore[override]
            optimizer, loss = self.optimizers(), super().training_step(batch, index)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
            optimizer.step()

    module, data = Manual(method), batches(6)
    trainer().fit(module, loader(data))
    require_equal(module.net, trained(method, data, clip=CLIP), network())


@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_sets_the_rate_of_every_step(method: str) -> None:
    module, data = Classifier(method, schedule=True), batches(6)
    trainer().fit(module, loader(data))
    require_equal(module.net, trained(method, data, schedule=True), network())


@pytest.mark.parametrize("method", METHODS)
def test_validation_between_steps_changes_nothing(method: str) -> None:
    class Validated(Classifier):
        def validation_step(self, batch: Batch, index: int) -> Tensor:
            return self.training_step(batch, index)

    module, data = Validated(method), batches(6)
    trainer(val_check_interval=2).fit(module, loader(data), loader(batches(3, n=5)))
    require_equal(module.net, trained(method, data), network())


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_that_is_skipped_is_no_step(method: str) -> None:
    """``training_step`` may return ``None``: so does the closure, and no parameter has a gradient."""

    class Skipping(Classifier):
        def training_step(self, batch: Batch, index: int) -> Any:
            return None if index == 3 else super().training_step(batch, index)

    module, data = Skipping(method), batches(7)
    trainer().fit(module, loader(data))
    require_equal(module.net, trained(method, data[:3] + data[4:]), network())


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_fit_is_one_that_never_stopped(method: str, tmp_path: Path) -> None:
    """After five steps, inside a cadence of curvature."""
    data = batches(5)
    first = Classifier(method, schedule=True)
    saving = ModelCheckpoint(dirpath=tmp_path, filename="one", save_weights_only=False)
    trainer(callbacks=[saving], gradient_clip_val=CLIP).fit(first, loader(data))
    second = Classifier(method, schedule=True)
    nn.init.zeros_(second.net[0].weight)  # what the checkpoint does not bring back would show
    trainer(2, gradient_clip_val=CLIP).fit(second, loader(data), ckpt_path=str(tmp_path / "one.ckpt"))
    require_equal(second.net, trained(method, data * 2, clip=CLIP, schedule=True), network())


@pytest.mark.parametrize("method", METHODS)
def test_double_precision_of_the_trainer_is_a_double_model(method: str) -> None:
    module, data = Classifier(method), [(x.double(), y) for x, y in batches(4)]
    trainer(precision="64-true").fit(module, loader(data))
    start, plain = network().double(), network().double()
    plain_loop(plain, made(method, plain), data)
    require_equal(module.net, plain, start)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_of_the_trainer_is_autocast(method: str) -> None:
    module, data = Classifier(method), batches(4)
    trainer(precision="bf16-mixed").fit(module, loader(data))

    def autocast(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(batch[0]), batch[1])

    require_equal(module.net, trained(method, data, loss_of=autocast), network())
