"""Fashion-MNIST by a small vision transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from curvlab.objectives.losses import CrossEntropy
from curvlab.protocols.bounds import Count, Depth, Width, check_bounds
from curvlab.protocols.loss import Loss
from curvlab.protocols.task import Task
from curvlab.tasks.fashion_mnist import CLASSES, GRAY, SIDE, classification
from curvlab.tasks.settings import check, divides
from curvlab.tasks.supervised import SupervisedWorkload
from curvlab.tasks.vit import VisionTransformer


@dataclass(frozen=True)
class FashionVit(Task):
    """Classify Fashion-MNIST with a vision transformer, as images ``[n, 1, 28, 28]``.

    Cross-entropy, pixels scaled to [0, 1].  As it is: 49 tokens of 128 numbers, 4 pre-norm blocks of
    4 heads, learned positions, the mean of the tokens classified, no dropout; 539,914 parameters.
    Dosovitskiy et al. 2021 (arXiv 2010.11929).  Data as for ``fashion-mnist``.
    """

    judged_by: ClassVar[tuple[str, bool]] = ("val_accuracy", True)

    patch: Width = 4  #: side of a patch in pixels, a divisor of 28
    dim: Width = 128  #: width of a token, ≥ 1
    depth: Depth = 4  #: blocks, ≥ 1
    heads: Width = 4  #: of each attention, a divisor of ``dim``
    mlp_ratio: Depth = 2  #: width of a block's hidden layer over ``dim``, ≥ 1
    batch_size: Count = 128  #: examples of a mini-batch, ≥ 1
    root: str | None = None  #: folder with the IDX files
    train_metrics: bool = False  #: evaluate on all training examples too
    loss: Loss = CrossEntropy()  #: of logits and classes

    def __post_init__(self) -> None:
        check_bounds(self)
        check(
            divides(SIDE, "the images' side", patch=self.patch),
            divides(self.dim, "dim", heads=self.heads),
        )

    def model(self) -> nn.Module:
        return VisionTransformer(
            side=SIDE,
            patch=self.patch,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            hidden=self.mlp_ratio * self.dim,
            classes=CLASSES,
        )

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        model = model.to(dtype=dtype, device=device)
        return classification(model, self.root, GRAY, self.loss, on_training=self.train_metrics)
