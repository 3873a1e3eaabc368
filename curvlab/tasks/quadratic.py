"""A quadratic of chosen spectrum: the task whose answer is known."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.mark import mark_of
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.bounds import Bounds, Count, Natural, NotNegative, Width, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Task, Workload
from curvlab.tasks.draws import Normal

PARAMETER = "theta"  #: name of the model's one parameter


class Point(nn.Module):
    """A parameter vector, drawn from N(0, I)."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.randn(dimension))

    def forward(self) -> Tensor:
        """θ itself."""
        return self.theta


@dataclass(frozen=True)
class Quadratic(Task):
    """Minimize ``L(θ) = ½ (θ − θ*)ᵀ A (θ − θ*)``; ``val_loss`` is L and ``val_distance`` is ‖θ − θ*‖.

    A has eigenvalues from 1 down to 1/``condition`` and random eigenvectors; θ* is random too.  Example
    n adds ``noise · ξ_nᵀ A^½ (θ − θ*)`` with ξ_n ~ N(0, I), so that the gradient's noise has covariance
    ``noise² A`` per example, as near the minimum of a likelihood.  The ξ_n add up to zero: over all
    examples L is the loss, and 0 its minimum.
    """

    dimension: Width = 100  #: parameters, ≥ 1
    condition: Annotated[float, Bounds(least=1)] = 1000.0  #: largest over smallest eigenvalue of A, ≥ 1
    spectrum: Literal["geometric", "linear"] = "geometric"  #: how the eigenvalues are spaced
    noise: NotNegative = 0.0  #: standard deviation of the noise, ≥ 0
    size: Count = 1024  #: examples, ≥ 1
    batch_size: Count = 32  #: examples of a mini-batch, ≥ 1
    data_seed: Natural = 0  #: of eigenvectors, optimum and noise

    def __post_init__(self) -> None:
        check_bounds(self)

    def model(self) -> nn.Module:
        return Point(self.dimension)

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> QuadraticWorkload:
        # drawn and multiplied in float64 on the CPU: the same problem in every precision, on every device
        draw, d = Normal(self.data_seed), self.dimension
        basis = torch.linalg.qr(draw(d, d)).Q
        values = self.eigenvalues()
        optimum, pulls = draw(d), draw(self.size, d)
        pulls = self.noise * (pulls - pulls.mean(0)) @ (basis * values.sqrt()) @ basis.mT
        bowl = Bowl(model.to(dtype=dtype, device=device), (basis * values) @ basis.mT, optimum)
        there = device, dtype
        return QuadraticWorkload(bowl.to(*there), pulls.to(*there))

    def eigenvalues(self) -> Float[Tensor, " d"]:
        """The eigenvalues of A, descending, in float64."""
        last = 1 / self.condition
        down = torch.linspace(0.0, 1.0, self.dimension, dtype=torch.float64, device="cpu")
        return 1 - (1 - last) * down if self.spectrum == "linear" else last**down


@dataclass(frozen=True)
class Bowl:
    """A model of one parameter vector θ, the matrix A and the optimum θ*."""

    model: nn.Module
    curvature: Float[Tensor, "d d"]
    optimum: Float[Tensor, " d"]

    def to(self, device: torch.device, dtype: torch.dtype) -> Bowl:
        """The same model beside matrix and optimum elsewhere."""
        curvature, optimum = self.curvature.to(device, dtype), self.optimum.to(device, dtype)
        return replace(self, curvature=curvature, optimum=optimum)

    @property
    def theta(self) -> Float[Tensor, " d"]:
        """The parameter."""
        return self.model.get_parameter(PARAMETER)


class QuadraticWorkload(Workload):
    """A bowl and each example's linear term."""

    def __init__(self, bowl: Bowl, pulls: Float[Tensor, "n d"]) -> None:
        self.model = bowl.model
        self.bowl = bowl
        self.pulls = pulls

    @property
    def size(self) -> int:
        return int(self.pulls.shape[0])

    def objective(self, draw: Draw) -> QuadraticObjective:
        pull = self._pull(draw.gradient)
        trial = pull if draw.acceptance is draw.gradient else self._pull(draw.acceptance)
        return QuadraticObjective(self.bowl, pull, trial, len(draw.gradient), len(draw.curvature))

    @torch.no_grad()
    def metrics(self) -> Mapping[str, float]:
        away = self.bowl.theta - self.bowl.optimum
        return {
            "val_loss": float(0.5 * away @ (self.bowl.curvature @ away)),
            "val_distance": float(torch.linalg.vector_norm(away)),
        }

    def _pull(self, indices: Tensor) -> Float[Tensor, " d"]:
        return self.pulls.index_select(0, indices.to(self.pulls.device)).mean(0)


@dataclass(frozen=True)
class QuadraticObjective(Objective):
    """``½ eᵀ A e + pullᵀ e`` with e = θ − θ*; gradient ``A e + pull`` and GGN A, in closed form.

    ``trial_pull`` is the acceptance sample's, the gradient sample's own where the two are one.
    """

    bowl: Bowl
    pull: Float[Tensor, " d"]
    trial_pull: Float[Tensor, " d"]
    examples: int
    curvature_examples: int

    def __call__(self) -> Float[Tensor, ""]:
        theta = self.bowl.theta
        value, theta.grad = self._value_and_gradient(theta, self.pull)
        return value

    def loss(self, at: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
        return self._value_and_gradient((at or {}).get(PARAMETER, self.bowl.theta), self.trial_pull)[0]

    def differentiate(
        self, at: Mapping[str, Tensor], *, acceptance: bool = False
    ) -> tuple[Float[Tensor, ""], Mapping[str, Tensor]]:
        pull = self.trial_pull if acceptance else self.pull
        value, gradient = self._value_and_gradient(at.get(PARAMETER, self.bowl.theta), pull)
        return value, {PARAMETER: gradient}

    def mark(self, *, again: bool = False) -> Hashable:
        return mark_of((self.pull, self.bowl.curvature, self.bowl.optimum))

    def start(self, seen: Evaluation) -> Float[Tensor, ""]:
        return seen.loss if self.trial_pull is self.pull else self.loss()

    def cast(self, dtype: torch.dtype) -> QuadraticObjective:
        pull = self.pull.to(dtype)
        trial = pull if self.trial_pull is self.pull else self.trial_pull.to(dtype)
        return replace(self, bowl=self.bowl.to(pull.device, dtype), pull=pull, trial_pull=trial)

    def evaluate(self, needs: Needs, blocks: Blocks, ctx: Context) -> Evaluation:
        value, gradient = self._value_and_gradient(self.bowl.theta, self.pull)
        return Evaluation(
            examples=self.examples,
            loss=value,
            gradient=blocks.pack({PARAMETER: gradient}),
            layers={kind: {} for kind in needs.layers},  # there are no layers
            ggn=Matrix(self.bowl.curvature) if needs.ggn else None,
            curvature_examples=self.curvature_examples,
        )

    def _value_and_gradient(
        self, theta: Tensor, pull: Tensor
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
        away = theta.detach() - self.bowl.optimum
        bend = self.bowl.curvature @ away
        return 0.5 * away @ bend + pull @ away, bend + pull


@dataclass
class Matrix(LinearOperator[BlockVector]):
    """A dense symmetric PSD matrix on the vectors of one block; ``count`` products were made with it."""

    entries: Float[Tensor, "d d"]
    count: int = 0

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        return BlockVector(v.layout, self.entries @ v.flat)
