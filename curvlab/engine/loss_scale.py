"""The loss scale of a training in float16, as it moves."""

from __future__ import annotations

from dataclasses import dataclass, field

from curvlab.errors import Diverged
from curvlab.protocols.loss_scaling import LossScaling

#: below this scale an overflow is the model's own
LEAST = 1.0


class LossScaleOverflow(Exception):
    """Numbers of a step are not finite under the present scale; the step is not taken."""


@dataclass
class LossScale:
    """``value`` is the present scale; ``good`` counts the steps since it last changed."""

    rule: LossScaling
    value: float = field(init=False)
    good: int = 0

    def __post_init__(self) -> None:
        self.value = self.rule.initial

    def overflowed(self, step: int) -> None:
        """A step's numbers were not finite; raises ``Diverged`` if a smaller scale cannot help."""
        if self.value <= LEAST:
            raise Diverged(
                f"step {step}: loss, gradients or statistics are not finite in float16, at a loss scale of"
                f" {self.value:g} too"
            )
        self.value, self.good = max(self.value * self.rule.backoff, LEAST), 0

    def succeeded(self) -> None:
        """A step was taken."""
        self.good += 1
        if self.good >= self.rule.interval:
            self.value, self.good = self.value * self.rule.growth, 0
