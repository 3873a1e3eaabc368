"""What tasks of operators share: a Fourier neural operator, and pairs of functions that it is fitted to."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Count, Natural, Width, check_bounds
from curvlab.protocols.loss import Loss
from curvlab.protocols.task import Task
from curvlab.tasks.supervised import Examples, SupervisedWorkload
from curvlab_operators.fourier_operator import FourierOperator
from curvlab_operators.operator_data import OperatorData
from curvlab_operators.pairs import Pairs
from curvlab_operators.relative_norms import RelativeH1, RelativeL2
from curvlab_operators.spectral_convolution import Stabilizer
from curvlab_operators.spectral_precision import SpectralPrecision


@dataclass(frozen=True)
class OperatorTask(Task):
    """A Fourier neural operator from one function on a grid to another.

    Inputs are shifted and scaled to mean 0 and variance 1 over the training examples.  Outputs are divided by
    their root mean square, which relative errors do not see.  Raises ``ConfigError`` for a grid that is too
    coarse for the modes.
    """

    axes: ClassVar[int]  #: of the grid
    periodic: ClassVar[bool]  #: whether the functions are, so that the operator needs no coordinates
    judged_by: ClassVar[tuple[str, bool]] = ("val_l2", False)

    grid: Count = 32  #: points on each axis
    width: Width = 16  #: channels of the Fourier layers
    modes: Count = 6  #: wave numbers below this one are kept, on each axis
    layers: Count = 4  #: Fourier layers
    spectral: SpectralPrecision = "full"  #: what is in float16
    stabilizer: Stabilizer = "none"  #: what bounds a signal before its Fourier transform
    size: Count = 200  #: training examples
    validation_size: Count = 50  #: validation examples
    batch_size: Count = 20  #: examples of a mini-batch
    data_seed: Natural = 0  #: of the examples
    root: str | None = None  #: folder of prepared data; made when the task is made if not given
    train_metrics: bool = False  #: evaluate on all training examples too
    loss: Loss = RelativeL2()  #: of outputs and targets

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.grid < 2 * self.modes - 1:
            what = f"grid = {self.grid} is too coarse for modes = {self.modes}"
            hint = f"set grid to {2 * self.modes - 1} or more, or modes to {(self.grid + 1) // 2} or less"
            raise ConfigError(Fault(what, path="grid", hint=hint))

    @abstractmethod
    def data(self) -> OperatorData:
        """What makes the examples."""

    def examples(self) -> int | None:
        return self.size

    def model(self) -> nn.Module:
        return FourierOperator(
            1,
            1,
            width=self.width,
            modes=(self.modes,) * self.axes,
            layers=self.layers,
            coordinates=not self.periodic,
            precision=self.spectral,
            stabilizer=self.stabilizer,
        )

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        training, validation = _normalized(self.data().pairs(self.root))
        l2, h1 = RelativeL2(), RelativeH1(periodic=self.periodic)
        return SupervisedWorkload(
            model.to(dtype=dtype, device=device),
            self.loss,
            training.to(dtype=dtype, device=device),
            validation.to(dtype=dtype, device=device),
            measures={"l2": l2.of_examples, "h1": h1.of_examples},
            on_training=self.train_metrics,
        )


def _normalized(pairs: Pairs) -> tuple[Examples, Examples]:
    """Training and validation examples, by the training examples' mean and scales."""
    kept = len(pairs.inputs) - pairs.held_out
    mean, scale = pairs.inputs[:kept].mean(), pairs.inputs[:kept].std()
    inputs = (pairs.inputs - mean) / scale
    outputs = pairs.outputs / pairs.outputs[:kept].square().mean().sqrt()
    return Examples(inputs[:kept], outputs[:kept]), Examples(inputs[kept:], outputs[kept:])
