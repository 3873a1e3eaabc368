"""Callbacks: what accompanies a run around any method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

S = TypeVar("S", bound=Any)


@dataclass(frozen=True)
class Notice:
    """What a callback reports: an event's name and details; the run adds the step."""

    name: str
    detail: Mapping[str, Any] = field(default_factory=dict)


class Callback(ABC, Generic[S]):
    """Adds a term to the loss, constrains or scales steps, changes the model between them, or ends a run.

    It works around whatever method trains: no part of the method knows of it.  Parameters are named as in
    ``model.named_parameters()``.

    ``penalizes``: whether ``penalty`` adds a term; only then is it evaluated.  ``constrains``: whether
    ``tangent`` restricts gradients.  ``scales_rates``: whether ``rates`` differ from 1.
    """

    penalizes: ClassVar[bool] = False
    constrains: ClassVar[bool] = False
    scales_rates: ClassVar[bool] = False

    @abstractmethod
    def init(self, model: nn.Module) -> S:
        """A fresh state before the first step, with every tensor that it will hold; ``None`` if it has none.

        May change the model's parameters and buffers, but not their shapes.  Raises ``ConfigError`` for a
        model that it cannot work on.
        """

    def penalty(self, state: S, model: nn.Module, at: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The term r(θ), differentiable in the parameters ``at``, all that are trained; deterministic.

        Its gradient joins that of the loss after layer statistics are taken, so that no curvature factor
        holds any of it.
        """
        raise NotImplementedError(f"{type(self).__name__} penalizes and does not define penalty()")

    def ridge(self, state: S) -> Mapping[str, float]:
        """The curvature of ``penalty``, where it is ``ρI`` on a parameter: ρ by name, in units of the loss.

        Methods that multiply with the Gauss–Newton matrix multiply with it too; those that hold factors add
        it to their damping where they can (``Preconditioner.ridged``).
        """
        return {}

    def tangent(self, state: S, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """``P g`` by parameter, for a callback that keeps parameters in a set by projecting after each step.

        P is the orthogonal projection on the directions along which parameters can move within the set.
        Parameters that are not named in the result are free.  ``gradient`` is that of the loss with every
        penalty, by whole parameter.  Without this, a preconditioner spends the step on directions that the
        projection afterwards takes back: ``P F⁻¹ g`` may ascend, ``P F⁻¹ P g`` cannot.
        """
        return {}

    def rates(self, state: S) -> Mapping[str, float]:
        """What the rates of parameters are multiplied by, by name; 1 for those not named."""
        return {}

    def stepped(self, state: S, model: nn.Module, loss: float) -> None:
        """A step was taken; ``loss`` was that before it, with every penalty.  May write parameters."""
        return None

    def epoch_ended(self, state: S, model: nn.Module, epoch: int) -> tuple[Notice, ...]:
        """Epoch ``epoch`` (from 1) has ended: every training example was drawn that often.

        May write parameters and buffers.  Returns what the run's events should say.
        """
        return ()

    def stops(self, state: S) -> str | None:
        """Why the run should end now, or ``None``."""
        return None
