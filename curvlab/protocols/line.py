"""The line along which a step rule searches: θ − α · update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.progress import Iterate
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.evidence import Step
from curvlab.protocols.path import DampedPath


@dataclass(frozen=True, kw_only=True)
class Line(ABC):
    """What a step rule may evaluate before it chooses: trial losses, trial gradients, the quadratic model.

    ``rate`` multiplies the rule's own rate (a torch ``lr_scheduler`` writes it).  ``iterates`` are those of
    the solve, which end with ``update``, and ``path`` its solutions for other dampings.  Trials are
    functional: no parameter and no buffer changes.
    """

    update: BlockVector
    gradient: BlockVector
    rate: float = 1.0
    damping: float = 0.0
    ggn: LinearOperator[BlockVector] | None = None
    loss: float = float("nan")  #: at θ, on the gradient sample
    iterates: tuple[Iterate, ...] = ()
    path: DampedPath | None = None

    @abstractmethod
    def start(self) -> float:
        """The loss at θ on the acceptance sample; repeated calls cost one evaluation."""

    @abstractmethod
    def loss_of(self, update: BlockVector, alpha: float) -> float:
        """The loss at θ − α·update on the acceptance sample; repeated calls cost one evaluation."""

    @abstractmethod
    def differentiate(
        self, update: BlockVector, alpha: float, *, acceptance: bool = False
    ) -> tuple[float, BlockVector]:
        """Loss and gradient at θ − α·update, on the gradient sample or on the acceptance sample."""

    @cached_property
    def slope(self) -> float:
        """dL/dα at α = 0; negative for a descent direction."""
        return -float(self.gradient.dot(self.update))

    def predicted(self, update: BlockVector, alpha: float) -> float:
        """Change of the undamped quadratic model: −α gᵀu + ½ α² uᵀ G u.

        Costs one product, or none if ``update`` is one of the iterates.
        """
        known = [i.curvature for i in self.iterates if i.x is update]
        if known:
            curvature = known[0]
        else:
            assert self.ggn is not None, "a part that asks for a prediction declares products in its needs"
            curvature = float(update.dot(self.ggn @ update))
        return -alpha * float(self.gradient.dot(update)) + 0.5 * alpha * alpha * curvature

    def ratio(self, step: Step) -> float:
        """Reduction ratio: actual over predicted change of the loss; NaN if either is not finite.

        Costs one trial loss and one product (two losses if the acceptance sample is another).
        """
        predicted = self.predicted(step.update, step.alpha)
        actual = self.loss_of(step.update, step.alpha) - self.start()
        return actual / predicted if predicted else float("nan")
