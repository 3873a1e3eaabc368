"""The deep autoencoder of the Hessian-free literature, on Fashion-MNIST."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from curvlab.protocols.bounds import Count, Natural, Width, check_bounds
from curvlab.protocols.task import Task
from curvlab.tasks.autoencoder import mirrored, reconstruction
from curvlab.tasks.fashion_mnist import PIXELS, find_files, images
from curvlab.tasks.mlp import Activation
from curvlab.tasks.supervised import SupervisedWorkload


@dataclass(frozen=True)
class FashionAutoencoder(Task):
    """Squeeze Fashion-MNIST through 784-1000-500-250-30 and back: sigmoid units, a linear code.

    The loss is binary cross-entropy of pixel values on logits, *summed over pixels* and averaged over
    examples; its least value is the pixels' own entropy, not 0.  ``val_error`` is the squared error,
    summed likewise.  Weights start sparse, as in Martens 2010 ("Deep learning via Hessian-free
    optimization"), after Hinton and Salakhutdinov 2006.  Data as for ``fashion-mnist``.
    """

    hidden: tuple[Width, ...] = (1000, 500, 250)  #: widths of the encoder's layers; the decoder mirrors them
    code: Width = 30  #: width of the code, ≥ 1
    activation: Activation = "sigmoid"
    connections: Natural = 15  #: incoming weights of a unit at the start; 0: torch's own dense start
    batch_size: Count = 1024  #: examples of a mini-batch, ≥ 1
    root: str | None = None  #: folder with the IDX files
    train_metrics: bool = False  #: evaluate on all training examples too

    def __post_init__(self) -> None:
        check_bounds(self)

    def model(self) -> nn.Module:
        return mirrored((PIXELS, *self.hidden, self.code), self.activation, self.connections)

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        folder = find_files(self.root)
        training, validation = (images(folder, part) for part in ("train", "t10k"))
        return reconstruction(
            model, training, validation, dtype=dtype, device=device, on_training=self.train_metrics
        )
