"""A task whose network is trained in factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from curvlab.protocols.bounds import check_bounds
from curvlab.protocols.task import Task, Workload
from curvlab_compress.matching import matching
from curvlab_compress.svd_layer import Split, decomposable, decomposed


@dataclass(frozen=True)
class SvdTask(Task):
    """The task ``of``, with linear layers and convolutions as ``U diag(s) Vᵀ``, for SVD training.

    By Yang et al. 2020, arXiv 2004.09031.  Layers are factorized once, when the model is made, with full
    rank; the network computes what it did, up to rounding.  Each factor is an ordinary layer, so every method
    reads it.  ``split`` is the matrix of a convolution: "channel" takes ``[n, c h w]``, "spatial"
    ``[n w, c h]``.  ``only`` are patterns of layer names.

    Convolutions in groups, heirs of torch's layers and, under "spatial", convolutions that are not of two
    dimensions or not padded by zeros stay as they are.  Raises ``ConfigError`` for a pattern that matches no
    layer that can be factorized.
    """

    of: Task
    split: Split = "channel"
    only: tuple[str, ...] = ("*",)  #: patterns of the names of layers

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """That of the task."""
        return self.of.batch_size

    @property
    def judged_by(self) -> tuple[str, bool]:  # type: ignore[override]
        """As the task is."""
        return self.of.judged_by

    def examples(self) -> int | None:
        return self.of.examples()

    def model(self) -> nn.Module:
        model = self.of.model()
        able = [name for name, module in model.named_modules() if decomposable(module, self.split)]
        for name in matching(able, self.only, "task.only", "layer that can be factorized"):
            layer = decomposed(model.get_submodule(name), self.split)
            if not name:
                return layer
            model.set_submodule(name, layer)
        return model

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> Workload:
        return self.of.workload(model, dtype=dtype, device=device)
