"""Small forms of the image networks, a batch for them, and the laws' common words."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.task import Task
from curvlab.tasks.fashion_convnet import FashionConvnet
from curvlab.tasks.fashion_vit import FashionVit

#: with parameters few enough for a dense Jacobian
SMALL: Mapping[str, Task] = {
    "fashion-convnet": FashionConvnet(channels=(2, 2, 3), hidden=6),
    "fashion-vit": FashionVit(patch=14, dim=8, depth=2, heads=2),
}


def network(task: Task, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return task.model().to(dtype)


def pictures(n: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Noise that is brighter on the left, in the middle or on the right, and which of them."""
    generator = torch.Generator().manual_seed(7)
    x = 0.2 * torch.rand(n, 1, 28, 28, generator=generator, dtype=torch.float64)
    y = torch.arange(n) % 3
    for k, label in enumerate(y.tolist()):
        x[k, :, :, 9 * label : 9 * label + 9] += 0.8
    return x.to(dtype), y


def asked(model: nn.Module) -> SupervisedObjective:
    """The objective of the pictures, in the model's dtype."""
    return objective(model, nn.CrossEntropyLoss(), *pictures(dtype=next(model.parameters()).dtype))


def train(model: nn.Module, opt: CurvatureOptimizer, steps: int) -> list[float]:
    return [float(opt.step(asked(model))) for _ in range(steps)]
