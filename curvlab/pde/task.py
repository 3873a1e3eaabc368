"""Tasks: a differential equation, solved by an MLP."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from curvlab.errors import ConfigError, Fault
from curvlab.pde.problem import Problem
from curvlab.pde.residuals import Residuals
from curvlab.pde.sine import Sine
from curvlab.pde.workload import PdeWorkload
from curvlab.protocols.bounds import Count, Natural, Width, check_bounds
from curvlab.protocols.task import Task
from curvlab.registry.imports import import_object, require_imports

Activation = Literal["tanh", "sine", "silu", "gelu", "softplus", "sigmoid"]

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "sine": Sine,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
}

#: more than any problem has: a batch of all points
ALL = 2**31


@dataclass(frozen=True)
class PdeTask(Task):
    """A problem, and the MLP that solves it; a subclass says which problem."""

    judged_by: ClassVar[tuple[str, bool]] = ("val_l2", False)

    hidden: tuple[Width, ...] = (64,)  #: widths of the hidden layers
    activation: Activation = "tanh"  #: tanh, sine, silu, gelu, softplus or sigmoid
    interior: Count = 900  #: points inside, ≥ 1
    boundary: Count = 120  #: points on the boundary, ≥ 1
    test: Count = 9000  #: points at which the error is measured, ≥ 1
    batch_size: Count = ALL  #: points of a mini-batch, ≥ 1; with as many as there are, all of them
    resample: Natural = 0  #: steps after which the points are drawn again; 0: never
    data_seed: Natural = 0  #: of the points

    def __post_init__(self) -> None:
        check_bounds(self)

    @abstractmethod
    def problem(self) -> Problem:
        """What is solved."""

    def network(self, problem: Problem) -> nn.Module:
        """The network, ``[n, d]`` to ``[n, outputs]``: an MLP whose last layer is linear."""
        return self.mlp(problem.dimension, problem.outputs)

    def mlp(self, inputs: int, outputs: int) -> nn.Sequential:
        """Linear layers of torch's own initialization with the activation between them."""
        widths, layers = (inputs, *self.hidden, outputs), list[nn.Module]()
        for k in range(1, len(widths)):
            layers.append(nn.Linear(widths[k - 1], widths[k]))
            if k < len(widths) - 1:
                layers.append(ACTIVATIONS[self.activation]())
        return nn.Sequential(*layers)

    def examples(self) -> int | None:
        return sum(len(x) for x in self.problem().draw(self.data_seed))

    def model(self) -> nn.Module:
        problem = self.problem()
        return Residuals(self.network(problem), problem)

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> PdeWorkload:
        assert isinstance(model, Residuals)
        return PdeWorkload(
            model, dtype=dtype, device=device, test=self.test, seed=self.data_seed, resample=self.resample
        )


@dataclass(frozen=True)
class OwnProblem(PdeTask):
    """A problem of your own: ``equation = "module:name"`` names a ``Problem`` or a function that makes one.

    ``net = "module:name"`` names a function from the problem to a network; without it the network is an MLP.
    The numbers of points are those of the problem's terms.  Importing a module runs its code.
    """

    judged_by: ClassVar[tuple[str, bool]] = ("val_loss", False)

    equation: str = ""  #: package.module:name of the problem
    net: str | None = None  #: package.module:name of a function that makes the network

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.equation:
            raise ConfigError(
                Fault("the task pde needs a problem", path="equation", hint='set equation = "module:name"')
            )

    def problem(self) -> Problem:
        found = _imported(self.equation, "equation")
        made = found() if callable(found) else found
        if not isinstance(made, Problem):
            raise ConfigError(
                Fault(
                    f'"{self.equation}" is of type {type(made).__name__}; expected a curvlab.pde.Problem,'
                    " or a function that returns one",
                    path="equation",
                )
            )
        return made

    def network(self, problem: Problem) -> nn.Module:
        if self.net is None:
            return super().network(problem)
        made = _imported(self.net, "net")(problem)
        if not isinstance(made, nn.Module):
            raise ConfigError(
                Fault(f'"{self.net}" returned a {type(made).__name__}; expected an nn.Module', path="net")
            )
        return made


def _imported(text: str, path: str) -> Any:
    """What an import string names; raises ``ConfigError``."""
    require_imports(text)
    try:
        return import_object(text)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            Fault(
                f'"{text}" cannot be imported: {error}',
                path=path,
                hint="write package.module:name, with the module on PYTHONPATH",
            )
        ) from error
