"""Exact cases, as data: small problems on which the truth is known or can be computed densely.

All are in float64, drawn from their own seed, and small enough for a dense Jacobian.  A problem
builds a new model each time, always the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.model.partition import partition
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.blocks import Blocks

DTYPE = torch.float64

#: how a layer's positions enter the loss: there is one, a loss term for each, or one term for all
Setting = Literal["none", "expand", "reduce"]


@dataclass(frozen=True)
class Problem:
    """A model, a torch criterion and a batch.

    ``build`` makes the model; ``seed`` draws its parameters.
    """

    name: str
    build: Callable[[], nn.Module]
    criterion: Any
    inputs: Tensor
    targets: Tensor
    seed: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def examples(self) -> int:
        """How many there are in the batch."""
        return int(self.inputs.shape[0])

    def model(self) -> nn.Module:
        """The model, always the same; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.build().to(DTYPE)

    def objective(self, model: nn.Module, *, micro_batch: int | None = None) -> SupervisedObjective:
        """The objective of the whole batch."""
        return objective(model, self.criterion, self.inputs, self.targets, micro_batch=micro_batch)

    def blocks(self, model: nn.Module) -> Blocks:
        """Every layer's weight and bias as one block."""
        return partition(model, lambda layer: True)


class MeanOverPositions(nn.Module):
    """``[n, s, d]`` → ``[n, d]``: what turns many positions into one loss term."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over the axis of positions."""
        return x.mean(1)


class ClassesSecond(nn.Module):
    """``[n, s, c]`` → ``[n, c, s]``: where torch's cross-entropy expects the classes."""

    def forward(self, x: Tensor) -> Tensor:
        """The last two axes exchanged."""
        return x.transpose(1, 2)


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64, from a seed of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def labels(*shape: int, classes: int, seed: int) -> Tensor:
    """Class indices, uniform."""
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def chain(
    widths: Sequence[int], activation: Callable[[], nn.Module] | None, *tail: nn.Module, bias: bool = True
) -> nn.Module:
    """Linear layers of these widths, an activation (or nothing) between them, ``tail`` behind."""
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        if layers and activation is not None:
            layers.append(activation())
        layers.append(nn.Linear(i, o, bias=bias))
    return nn.Sequential(*layers, *tail)


def deep_linear(
    examples: int,
    *,
    setting: Setting = "none",
    positions: int = 1,
    widths: Sequence[int] = (4, 5, 3, 2),
    bias: bool = True,
    reduction: str = "mean",
) -> Problem:
    """A deep linear network under squared error: the back-propagated vectors are the same for all examples.

    There KFAC with exact labels is the block-diagonal GGN: without sharing, and with it in the setting
    that ``sharing`` names: ``expand``, a loss term at each position; ``reduce``, one on their mean.
    """
    if (setting == "none") != (positions == 1):
        raise ValueError(f"{positions} positions in the setting {setting!r}")
    shape = (examples,) if setting == "none" else (examples, positions)
    tail = (MeanOverPositions(),) if setting == "reduce" else ()
    outputs = (examples, positions) if setting == "expand" else (examples,)
    return Problem(
        f"deep-linear-{setting}-n{examples}-s{positions}-{reduction}" + ("" if bias else "-no-bias"),
        partial(chain, widths, None, *tail, bias=bias),
        nn.MSELoss(reduction=reduction),
        normal(*shape, widths[0], seed=1),
        normal(*outputs, widths[-1], seed=2),
    )


CRITERIA: Mapping[str, Callable[..., nn.Module]] = {
    "cross-entropy": nn.CrossEntropyLoss,
    "squared-error": nn.MSELoss,
    "binary-cross-entropy": nn.BCEWithLogitsLoss,
}


def classifier(
    criterion: str, examples: int, *, widths: Sequence[int] = (4, 5, 3), reduction: str = "mean"
) -> Problem:
    """A tanh network under one of ``CRITERIA``; with one example, a case in which KFAC is exact."""
    c = widths[-1]
    targets = {
        "cross-entropy": labels(examples, classes=c, seed=2),
        "squared-error": normal(examples, c, seed=2),
        "binary-cross-entropy": labels(examples, c, classes=2, seed=2).to(DTYPE),
    }
    return Problem(
        f"{criterion}-n{examples}-{reduction}",
        partial(chain, widths, nn.Tanh),
        CRITERIA[criterion](reduction=reduction),
        normal(examples, widths[0], seed=1),
        targets[criterion],
    )


def supervised_losses(examples: int = 6) -> tuple[Problem, ...]:
    """Losses of known curvature, in every way torch lets them be written, and one known by its value."""
    found = []
    for reduction in ("mean", "sum"):
        for name, make, positions, targets in (*_class_losses(examples), *_number_losses(examples)):
            tail = (ClassesSecond(),) if "[n, c, s]" in name else ()
            shape = (examples, positions) if positions > 1 else (examples,)
            found.append(
                Problem(
                    f"{name}, {reduction}",
                    partial(chain, (4, 5, CLASSES), nn.Tanh, *tail),
                    make(reduction=reduction),
                    normal(*shape, 4, seed=1),
                    targets,
                )
            )
    return tuple(found)


CLASSES = 3
PADDING = 7  #: no class: what the targets of padded tokens say

#: name, criterion by its reduction, positions, targets
_Case = tuple[str, Callable[..., nn.Module], int, Tensor]


def _class_losses(n: int, s: int = 2) -> Iterator[_Case]:
    y, tokens = labels(n, classes=CLASSES, seed=2), labels(n, s, classes=CLASSES, seed=2)
    some, padded = y.clone(), tokens.masked_fill(labels(n, s, classes=3, seed=3) == 0, PADDING)
    some[::3] = -100
    probable = normal(n, CLASSES, seed=4).softmax(-1)
    probable_tokens = normal(n, CLASSES, s, seed=4).softmax(1)
    plain = nn.CrossEntropyLoss
    weighted = partial(plain, torch.tensor([0.5, 1.0, 2.5], dtype=DTYPE))
    smooth, both = partial(plain, label_smoothing=0.2), partial(weighted, label_smoothing=0.2)
    yield "cross-entropy", plain, 1, y
    yield "some ignored", plain, 1, some
    yield "class weights", weighted, 1, y
    yield "class weights, some ignored", weighted, 1, some
    yield "smoothed", smooth, 1, y
    yield "smoothed, some ignored", smooth, 1, some
    yield "smoothed, class weights", both, 1, y
    yield "smoothed, class weights, some ignored", both, 1, some
    yield "probabilities", plain, 1, probable
    yield "probabilities, class weights", weighted, 1, probable
    yield "probabilities, smoothed", smooth, 1, probable
    yield "probabilities, smoothed, class weights", both, 1, probable
    yield "tokens [n, c, s]", plain, s, tokens
    yield "tokens [n, c, s], padded", partial(plain, ignore_index=PADDING), s, padded
    yield "tokens [n, c, s], padded, class weights", partial(weighted, ignore_index=PADDING), s, padded
    yield "tokens [n, c, s], probabilities", plain, s, probable_tokens


def _number_losses(n: int, s: int = 2) -> Iterator[_Case]:
    bits = labels(n, CLASSES, classes=2, seed=2).to(DTYPE)
    weights = torch.tensor([0.5, 1.0, 2.5], dtype=DTYPE)
    yield "squared error", nn.MSELoss, 1, normal(n, CLASSES, seed=2)
    yield "squared error, tokens", nn.MSELoss, s, normal(n, s, CLASSES, seed=2)
    yield "binary", nn.BCEWithLogitsLoss, 1, bits
    yield "binary, soft targets", nn.BCEWithLogitsLoss, 1, 0.1 + 0.8 * bits
    yield "binary, tokens", nn.BCEWithLogitsLoss, s, normal(n, s, CLASSES, seed=2).sigmoid()
    yield "binary, positives weighted", partial(nn.BCEWithLogitsLoss, pos_weight=weights), 1, bits
    yield "Huber", partial(nn.HuberLoss, delta=0.7), 1, normal(n, CLASSES, seed=2)
    yield "smooth L1, tokens", partial(nn.SmoothL1Loss, beta=0.7), s, normal(n, s, CLASSES, seed=2)
    yield "counts", nn.PoissonNLLLoss, 1, labels(n, CLASSES, classes=5, seed=2).to(DTYPE)
    yield "by value: coordinates weighted", partial(nn.BCEWithLogitsLoss, weights), 1, bits


@dataclass(frozen=True)
class Bowl(Problem):
    """Linear regression: the loss is a quadratic of θ, its curvature exact, its minimum ``solution``."""

    @property
    def solution(self) -> Float[Tensor, "o i"]:
        """The block ``[weight | bias]`` at the minimum."""
        rows = torch.cat([self.inputs, torch.ones(self.examples, 1, dtype=DTYPE)], dim=1)
        solution: Tensor = torch.linalg.lstsq(rows, self.targets).solution.mT
        return solution


def bowl(examples: int = 12, inputs: int = 4, outputs: int = 2) -> Bowl:
    """Least squares with more examples than inputs: one minimum."""
    return Bowl(
        "bowl",
        lambda: nn.Linear(inputs, outputs),
        nn.MSELoss(),
        normal(examples, inputs, seed=1),
        normal(examples, outputs, seed=2),
    )
