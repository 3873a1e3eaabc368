"""Fashion-MNIST by a small convolutional network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from curvlab.objectives.losses import CrossEntropy
from curvlab.protocols.bounds import Count, Width, check_bounds
from curvlab.protocols.loss import Loss
from curvlab.protocols.task import Task
from curvlab.tasks.convnet import CONVOLUTIONS, convnet
from curvlab.tasks.fashion_mnist import CLASSES, GRAY, SIDE, classification
from curvlab.tasks.mlp import Activation
from curvlab.tasks.settings import check, widths
from curvlab.tasks.supervised import SupervisedWorkload


@dataclass(frozen=True)
class FashionConvnet(Task):
    """Classify Fashion-MNIST with three convolutions and two linear layers, as images ``[n, 1, 28, 28]``.

    Cross-entropy, pixels scaled to [0, 1].  With the channels as they are, the first linear layer reads
    3,136 numbers and holds 94 % of the 426,122 parameters: the wide layer that many small networks
    have, and that a method's structures must hold.  Data as for ``fashion-mnist``.
    """

    judged_by: ClassVar[tuple[str, bool]] = ("val_accuracy", True)

    channels: tuple[Width, Width, Width] = (16, 32, 64)  #: of the three convolutions
    hidden: Width = 128  #: width of the hidden linear layer, ≥ 1
    activation: Activation = "relu"
    batch_size: Count = 128  #: examples of a mini-batch, ≥ 1
    root: str | None = None  #: folder with the IDX files
    train_metrics: bool = False  #: evaluate on all training examples too
    loss: Loss = CrossEntropy()  #: of logits and classes

    def __post_init__(self) -> None:
        check_bounds(self)
        check(widths(CONVOLUTIONS, channels=self.channels))

    def model(self) -> nn.Module:
        return convnet(self.channels, self.hidden, CLASSES, self.activation, side=SIDE)

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        model = model.to(dtype=dtype, device=device)
        return classification(model, self.root, GRAY, self.loss, on_training=self.train_metrics)
