"""Tasks: equations on the unit cube, solved by an MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import nn

from curvlab.protocols.bounds import Bounds, Count, Natural, Width, check_bounds
from curvlab.protocols.task import Task
from curvlab.tasks.mlp import mlp
from curvlab_pinn.equations import CosineSum, Equation, HeatDecay, MinusLaplace, SineProduct
from curvlab_pinn.residuals import Residuals
from curvlab_pinn.workload import Cloud, PinnWorkload

#: by name of the solution
SOLUTIONS: dict[str, type[MinusLaplace]] = {"sine-product": SineProduct, "cosine-sum": CosineSum}


@dataclass(frozen=True)
class Poisson(Task):
    """Solve ``−Δu = f`` on the unit cube with u given on its faces: ``½ mean (−Δu − f)² + ½ mean (u − g)²``.

    The network is an MLP with tanh; the points are drawn once.  The solution is ``Π_i sin(π x_i)`` or
    ``Σ_i cos(π x_i)``; ``val_l2`` is the relative error at test points.  The defaults are the small network
    of Dangel, Müller and Zeinhofer 2024 (arXiv 2405.15603) on two dimensions, all points in every step.
    """

    judged_by: ClassVar[tuple[str, bool]] = ("val_l2", False)

    dimension: Width = 2  #: coordinates, ≥ 1
    solution: Literal["sine-product", "cosine-sum"] = "sine-product"
    hidden: tuple[Width, ...] = (64,)  #: widths of the hidden layers
    interior: Count = 900  #: points inside, ≥ 1
    boundary: Count = 120  #: points on the faces, ≥ 1
    test: Count = 9000  #: points at which the error is measured, ≥ 1
    batch_size: Count = 1020  #: points of a mini-batch, ≥ 1; with as many as there are, all of them
    data_seed: Natural = 0  #: of the points

    def __post_init__(self) -> None:
        check_bounds(self)

    def equation(self) -> Equation:
        """What is solved."""
        return SOLUTIONS[self.solution](self.dimension)

    def model(self) -> nn.Module:
        return Residuals(mlp((self.dimension, *self.hidden, 1), "tanh"), self.equation())

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> PinnWorkload:
        return _workload(self, model, dtype, device)


@dataclass(frozen=True)
class Heat(Task):
    """Solve ``∂u/∂t = Δu`` on the unit cube of time and space, u given at time 0 and on the faces of space.

    ``½ mean (∂u/∂t − Δu)² + ½ mean (u − g)²``.  The network is an MLP with tanh; the points are drawn once.
    The solution is ``exp(−π² t/4) Σ_i sin(π x_i/2)``; ``val_l2`` is the relative error at test points.
    """

    judged_by: ClassVar[tuple[str, bool]] = ("val_l2", False)

    dimension: Annotated[int, Bounds(least=2), Bounds(most=2**24)] = 2  #: coordinates, time among them, ≥ 2
    hidden: tuple[Width, ...] = (64, 64)  #: widths of the hidden layers
    interior: Count = 900  #: points inside, ≥ 1
    boundary: Count = 120  #: points at time 0 and on the faces of space, ≥ 1
    test: Count = 9000  #: points at which the error is measured, ≥ 1
    batch_size: Count = 1020  #: points of a mini-batch, ≥ 1; with as many as there are, all of them
    data_seed: Natural = 0  #: of the points

    def __post_init__(self) -> None:
        check_bounds(self)

    def equation(self) -> Equation:
        """What is solved."""
        return HeatDecay(self.dimension)

    def model(self) -> nn.Module:
        return Residuals(mlp((self.dimension, *self.hidden, 1), "tanh"), self.equation())

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> PinnWorkload:
        return _workload(self, model, dtype, device)


def _workload(
    task: Poisson | Heat, model: nn.Module, dtype: torch.dtype, device: torch.device
) -> PinnWorkload:
    assert isinstance(model, Residuals)
    cloud = Cloud.drawn(task.equation(), task.interior, task.boundary, task.test, task.data_seed)
    return PinnWorkload(model.to(dtype=dtype, device=device), cloud.to(dtype=dtype, device=device))
