"""The workload of supervised learning: a model, a loss, and examples that lie on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvlab.objectives.prediction import predicted
from curvlab.objectives.samples import IndexedExamples, Sample, Source
from curvlab.objectives.supervised import SupervisedObjective
from curvlab.protocols.loss import Loss
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Workload

#: examples per forward pass of an evaluation: few passes, and activations of modest size
CHUNK = 2000

#: a number per example, from a batch's outputs and targets
PerExample = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Examples:
    """Inputs and targets, examples leading: a ``Source``."""

    inputs: Tensor
    targets: Tensor

    def to(self, *, dtype: torch.dtype, device: torch.device) -> Examples:
        """Moved there; class indices keep their dtype, and one tensor in both places stays one."""
        inputs = _moved(self.inputs, dtype, device)
        same = self.targets is self.inputs
        return Examples(inputs, inputs if same else _moved(self.targets, dtype, device))

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The examples of these indices, copied once."""
        indices = indices.to(self.inputs.device)
        inputs = self.inputs.index_select(0, indices)
        same = self.targets is self.inputs  # an autoencoder
        return inputs, inputs if same else self.targets.index_select(0, indices)

    def __len__(self) -> int:
        return int(self.inputs.shape[0])


class SupervisedWorkload(Workload):
    """Model, loss, training and validation examples; ``measures`` are metrics beside the loss.

    ``metrics`` are means over the validation examples: ``val_loss``, and ``val_<name>`` of each
    measure; with ``on_training``, ``train_loss`` and ``train_<name>`` over all training examples too.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        training: Source,
        validation: Source,
        *,
        measures: Mapping[str, PerExample] | None = None,
        on_training: bool = False,
    ) -> None:
        self.model = model
        self.loss = loss
        self.training = training
        self.validation = validation
        self.measures = dict(measures or {})
        self.on_training = on_training

    @property
    def size(self) -> int:
        return len(self.training)

    def objective(self, draw: Draw) -> SupervisedObjective:
        def sample(indices: Tensor) -> Sample:
            lazily = draw.micro_batch is not None and draw.micro_batch < len(indices)
            return IndexedExamples(self.training, indices) if lazily else self.training.rows(indices)

        gradient = sample(draw.gradient)
        curvature = None if draw.curvature is draw.gradient else sample(draw.curvature)
        if draw.acceptance is draw.gradient:
            acceptance = None
        else:
            acceptance = curvature if draw.acceptance is draw.curvature else sample(draw.acceptance)
        return SupervisedObjective(
            self.model,
            self.loss,
            *((gradient,) if isinstance(gradient, IndexedExamples) else gradient),
            curvature=curvature,
            acceptance=acceptance,
            micro_batch=draw.micro_batch,
        )

    def metrics(self) -> Mapping[str, float]:
        found = self._means("val", self.validation)
        if self.on_training:
            found |= self._means("train", self.training)
        return found

    @torch.no_grad()
    def _means(self, prefix: str, examples: Source) -> dict[str, float]:
        sums = dict.fromkeys(("loss", *self.measures), 0.0)
        with evaluating(self.model):
            for start in range(0, len(examples), CHUNK):
                x, y = examples.rows(torch.arange(start, min(start + CHUNK, len(examples)), device="cpu"))
                outputs = self.model(x)
                sums["loss"] += float(self.loss.mean(predicted(self.loss, outputs), y)) * len(x)
                for name, measure in self.measures.items():
                    sums[name] += float(measure(outputs, y).sum())
        return {f"{prefix}_{name}": total / len(examples) for name, total in sums.items()}


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit is the target class's, else 0."""
    return outputs.argmax(dim=1) == targets


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _moved(t: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return t.to(device=device, dtype=dtype if t.is_floating_point() else t.dtype)
