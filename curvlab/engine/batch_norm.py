"""Running statistics of batch normalization, computed anew for other weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Workload

#: layers that may keep statistics of batches
TRACKING = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)

#: batches over which statistics are averaged: those of more examples, or fewer if there are no more
BATCHES = 10


def tracking(model: nn.Module) -> list[Any]:
    """The layers that keep statistics of batches."""
    norms = (m for m in model.modules() if isinstance(m, TRACKING))
    return [m for m in norms if m.track_running_stats and m.running_mean is not None]


def recompute(workload: Workload, batch_size: int) -> None:
    """Running means and variances of the model's present weights, over ``BATCHES`` batches, equally weighted.

    The batches hold training examples at even distances, always the same.  Costs as many gradients, which are
    discarded; nothing, if no layer keeps statistics.
    """
    norms = tracking(workload.model)
    if not norms:
        return
    count = min(workload.size, BATCHES * batch_size)
    chosen = torch.arange(count, device="cpu") * workload.size // count
    batches = [chosen[k::BATCHES] for k in range(min(BATCHES, count))]
    gradients = {p: p.grad for p in workload.model.parameters()}
    with _averaging(norms), _training(workload.model):
        for indices in batches:
            workload.objective(Draw(indices, indices, indices))()
    for p, gradient in gradients.items():
        p.grad = gradient


@contextmanager
def _averaging(norms: list[Any]) -> Iterator[None]:
    """Inside, statistics begin anew, and every batch has the same weight."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Inside, every module is in training mode."""
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
