"""Loss scaling: how the factor moves that keeps gradients in float16's range."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossScaling:
    """The loss is multiplied by a scale before it is differentiated; gradients are divided by it, in float32.

    After a step that overflowed the scale is multiplied by ``backoff``, after ``interval`` steps in a row
    that did not by ``growth``.  Powers of two change no bit of a number that stays in range.
    """

    initial: float
    growth: float
    backoff: float
    interval: int
