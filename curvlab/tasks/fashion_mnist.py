"""Fashion-MNIST: 28 × 28 gray images of clothes in ten classes, from files that are already here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curvlab.errors import DataError
from curvlab.objectives.losses import CrossEntropy
from curvlab.protocols.bounds import Count, Width, check_bounds
from curvlab.protocols.loss import Loss
from curvlab.protocols.task import Task
from curvlab.tasks.idx import read_idx
from curvlab.tasks.mlp import Activation, mlp
from curvlab.tasks.supervised import Examples, SupervisedWorkload, correct

SIDE, CLASSES = 28, 10
PIXELS = SIDE * SIDE

#: shape of one image: as a row, and as a picture of one color
ROW, GRAY = (PIXELS,), (1, SIDE, SIDE)

#: where Debian's package ``dataset-fashion-mnist`` puts its files
DEBIAN = Path("/usr/share/datasets/fashion-mnist")

HOW_TO_GET = (
    "To get Fashion-MNIST's four IDX files, run `apt-get install dataset-fashion-mnist` on Debian or Ubuntu, "
    "or put them into a folder and name it in the task's `root` setting or in CURVLAB_DATA"
)

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


@dataclass(frozen=True)
class FashionMnist(Task):
    """Classify Fashion-MNIST with an MLP: cross-entropy, pixels scaled to [0, 1].

    Trains on the 60,000 training images and measures on the 10,000 test images.  Reads the four IDX
    files, gzipped or not, from ``root``; else from ``CURVLAB_DATA`` or its folder ``fashion-mnist``; else
    from Debian's package ``dataset-fashion-mnist``.  Xiao, Rasul and Vollgraf 2017 (arXiv 1708.07747).
    """

    judged_by: ClassVar[tuple[str, bool]] = ("val_accuracy", True)

    hidden: tuple[Width, ...] = (512, 512, 512)  #: widths of the hidden layers
    activation: Activation = "relu"
    batch_size: Count = 128  #: examples of a mini-batch, ≥ 1
    root: str | None = None  #: folder with the IDX files
    train_metrics: bool = False  #: evaluate on all training examples too
    loss: Loss = CrossEntropy()  #: of logits and classes

    def __post_init__(self) -> None:
        check_bounds(self)

    def model(self) -> nn.Module:
        return mlp((PIXELS, *self.hidden, CLASSES), self.activation)

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        model = model.to(dtype=dtype, device=device)
        return classification(model, self.root, ROW, self.loss, on_training=self.train_metrics)


def classification(
    model: nn.Module, root: str | None, shape: tuple[int, ...], loss: Loss, *, on_training: bool
) -> SupervisedWorkload:
    """``model`` to be trained on images of ``shape``, in its own dtype and where it lies.

    Measured by accuracy; raises ``DataError`` as ``find_files`` and ``labeled`` do.
    """
    folder, like = find_files(root), next(model.parameters())
    training, validation = (labeled(folder, part, shape) for part in ("train", "t10k"))
    return SupervisedWorkload(
        model,
        loss,
        training.to(dtype=like.dtype, device=like.device),
        validation.to(dtype=like.dtype, device=like.device),
        measures={"accuracy": correct},
        on_training=on_training,
    )


def find_files(root: str | None) -> Path:
    """The first folder, of those a user may mean, that holds the four files; else ``DataError``.

    A ``root`` that is given is meant: where it lacks files, no other place is tried.
    """
    if root is not None:
        folder = Path(root).expanduser()
        missing = [name for name in FILES if _file(folder, name) is None]
        if missing:
            raise DataError(f"{folder} lacks {', '.join(f'{m}[.gz]' for m in missing)}. {HOW_TO_GET}")
        return folder
    places = [DEBIAN]
    if os.environ.get("CURVLAB_DATA"):
        base = Path(os.environ["CURVLAB_DATA"]).expanduser()
        places = [base, base / "fashion-mnist", *places]
    for folder in places:
        if all(_file(folder, name) for name in FILES):
            return folder
    raise DataError(f"Fashion-MNIST was not found in {', '.join(map(str, places))}. {HOW_TO_GET}")


def images(folder: Path, part: str) -> Tensor:
    """Images of ``train`` or ``t10k`` as rows of 784 pixels in [0, 1], float32."""
    return torch.from_numpy(_pixels(folder, part).reshape(-1, PIXELS).astype(np.float32)).div_(255)


def labeled(folder: Path, part: str, shape: tuple[int, ...] = ROW) -> Examples:
    """Images of ``train`` or ``t10k``, each of ``shape``, with their classes."""
    x = images(folder, part).view(-1, *shape)
    y = read_idx(_present(folder, f"{part}-labels-idx1-ubyte"), (len(x),))
    if y.size and y.max() >= CLASSES:
        raise DataError(f"{folder}: label {y.max()} in {part}, expected 0 to {CLASSES - 1}")
    return Examples(x, torch.from_numpy(y.astype(np.int64)))


def _pixels(folder: Path, part: str) -> NDArray[np.uint8]:
    return read_idx(_present(folder, f"{part}-images-idx3-ubyte"), (None, SIDE, SIDE))


def _present(folder: Path, name: str) -> Path:
    return _file(folder, name) or folder / name


def _file(folder: Path, name: str) -> Path | None:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    return None
