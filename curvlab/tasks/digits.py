"""The 8 × 8 handwritten digits inside scikit-learn's wheel: real data that are always there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from curvlab.errors import DataError
from curvlab.objectives.losses import CrossEntropy
from curvlab.protocols.bounds import Count, Natural, Width, check_bounds
from curvlab.protocols.loss import Loss
from curvlab.protocols.task import Task
from curvlab.tasks.mlp import Activation, mlp
from curvlab.tasks.supervised import Examples, SupervisedWorkload, correct

PIXELS, CLASSES = 64, 10
BRIGHTEST = 16.0  #: the images count set pixels in 4 × 4 cells

#: one example in this many is held out
HELD_OUT = 5


@dataclass(frozen=True)
class Digits(Task):
    """Classify scikit-learn's 1,797 digits with an MLP: cross-entropy, pixels scaled to [0, 1].

    A seeded fifth of every class is held out for validation.  Alpaydin and Kaynak 1998.
    """

    judged_by: ClassVar[tuple[str, bool]] = ("val_accuracy", True)

    hidden: tuple[Width, ...] = (128, 128)  #: widths of the hidden layers
    activation: Activation = "relu"
    batch_size: Count = 128  #: examples of a mini-batch, ≥ 1
    data_seed: Natural = 0  #: of the split; accuracies of splits lie ± 1 % apart, 0 among the hardest
    train_metrics: bool = False  #: evaluate on all training examples too
    loss: Loss = CrossEntropy()  #: of logits and classes

    def __post_init__(self) -> None:
        check_bounds(self)

    def model(self) -> nn.Module:
        return mlp((PIXELS, *self.hidden, CLASSES), self.activation)

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        pixels, classes = load()
        held_out = stratified(classes, self.data_seed)

        def chosen(mask: NDArray[np.bool_]) -> Examples:
            x, y = torch.from_numpy(pixels[mask]), torch.from_numpy(classes[mask])
            return Examples(x, y).to(dtype=dtype, device=device)

        return SupervisedWorkload(
            model.to(dtype=dtype, device=device),
            self.loss,
            chosen(~held_out),
            chosen(held_out),
            measures={"accuracy": correct},
            on_training=self.train_metrics,
        )


def load() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels ``[1797, 64]`` in [0, 1] and classes; raises ``DataError`` without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"the digits are part of scikit-learn, which cannot be imported ({error}); run "
            'pip install "curvlab[digits]"'
        ) from error
    pixels, classes = load_digits(return_X_y=True)
    return pixels / BRIGHTEST, classes.astype(np.int64)


def stratified(classes: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Which examples are held out: one in five of every class, rounded down, chosen by ``seed``."""
    held_out = np.zeros(len(classes), dtype=np.bool_)
    generator = np.random.default_rng(seed)
    for label in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == label))
        held_out[members[: len(members) // HELD_OUT]] = True
    return held_out
