"""Regression on the outputs of a network: a task that a student of the teacher's shape can solve exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from curvlab.objectives.losses import MeanSquaredError
from curvlab.protocols.bounds import Count, Natural, NotNegative, Width, check_bounds
from curvlab.protocols.loss import Loss
from curvlab.protocols.task import Task
from curvlab.tasks.draws import Normal
from curvlab.tasks.mlp import Activation, mlp
from curvlab.tasks.supervised import Examples, SupervisedWorkload


@dataclass(frozen=True)
class TeacherStudent(Task):
    """Fit ``y = teacher(x) + noise``, x ~ N(0, I), by mean squared error; the teacher is a random MLP.

    Validation targets carry no noise, so ``val_loss`` is 0 for a student that has become the teacher.
    Without noise that student is also the optimum of the training loss.  The teacher's weights are
    drawn from N(0, 2/fan-in), its biases from N(0, 1/10): units that neither die nor saturate.
    """

    inputs: Width = 16  #: dimension of x, ≥ 1
    hidden: tuple[Width, ...] = (32, 32)  #: widths of the student's hidden layers
    teacher_hidden: tuple[Width, ...] | None = None  #: of the teacher's; as the student's if not given
    outputs: Width = 4  #: dimension of y, ≥ 1
    activation: Activation = "tanh"  #: of both
    noise: NotNegative = 0.0  #: standard deviation of what is added to training targets, ≥ 0
    size: Count = 2048  #: training examples, ≥ 1
    validation_size: Count = 1024  #: validation examples, ≥ 1
    batch_size: Count = 128  #: examples of a mini-batch, ≥ 1
    data_seed: Natural = 0  #: of teacher, inputs and noise
    train_metrics: bool = False  #: evaluate on all training examples too
    loss: Loss = MeanSquaredError()  #: of outputs and targets

    def __post_init__(self) -> None:
        check_bounds(self)

    def model(self) -> nn.Module:
        return mlp((self.inputs, *self.hidden, self.outputs), self.activation)

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> SupervisedWorkload:
        # drawn and computed in float64 on the CPU: the same examples in every precision, on every device
        draw = Normal(self.data_seed)
        teacher = self._teacher(draw)
        x, x_val = draw(self.size, self.inputs), draw(self.validation_size, self.inputs)
        with torch.no_grad():
            y, y_val = teacher(x), teacher(x_val)
        y += self.noise * draw(*y.shape)
        return SupervisedWorkload(
            model.to(dtype=dtype, device=device),
            self.loss,
            Examples(x, y).to(dtype=dtype, device=device),
            Examples(x_val, y_val).to(dtype=dtype, device=device),
            on_training=self.train_metrics,
        )

    def teacher(self) -> nn.Module:
        """The teacher, in float64 on the CPU."""
        return self._teacher(Normal(self.data_seed))

    @torch.no_grad()
    def _teacher(self, draw: Normal) -> nn.Module:
        hidden = self.hidden if self.teacher_hidden is None else self.teacher_hidden
        with torch.device("meta"):  # no initialization: torch's global generator belongs to the student
            teacher = mlp((self.inputs, *hidden, self.outputs), self.activation).double()
        teacher.to_empty(device="cpu").requires_grad_(False)
        for layer in teacher.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(draw(*layer.weight.shape) * (2 / layer.in_features) ** 0.5)
                layer.bias.copy_(draw(*layer.bias.shape) * 0.1**0.5)
        return teacher
