"""What a run tells the world: records of steps, evaluations and events, and who listens."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepFacts:
    """What one step was, as plain numbers, never a tensor; ``None`` where the method has no such quantity."""

    loss: float
    lr: float
    damping: float | None = None
    cg_iterations: int | None = None
    products: int | None = None
    product_examples: int | None = None
    reduction_ratio: float | None = None
    accepted: bool | None = None
    gradient_size: int | None = None
    curvature_size: int | None = None


@dataclass(frozen=True)
class _Position:
    """Where in a run a step is."""

    step: int
    epoch: float
    examples: int
    seconds: float


@dataclass(frozen=True)
class StepRecord(StepFacts, _Position):
    """One training step of a run: its facts, and how far the run is then.

    ``step`` counts from 1 (steps done), ``examples`` is the total seen so far, ``seconds`` is
    training time only.
    """


@dataclass(frozen=True)
class EvalRecord:
    """Held-out metrics after ``step`` steps."""

    step: int
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Event:
    """Something that a user should know happened: a retry, a rejection, a fallback, a signal.

    ``name`` is a short fixed word (``retried-in-float64``, ``more-damping``, ``rejected``, …);
    ``detail`` holds plain values: the block, the numbers, the message.
    """

    name: str
    step: int
    detail: Mapping[str, Any]


class StopRun(Exception):
    """Raised by a reporter to end the run on purpose, with the reason as its text.

    The run writes a checkpoint of its present step and ends with the exit reason ``stopped``, which is not
    an error: ``curvlab train`` exits with 0, and ``curvlab.train`` returns the run.  It can be resumed.  The
    other reporters are called first, and all of them once more at the end.  A stop that is raised when the
    budget is used up, or in ``finished``, changes nothing.
    """


class Reporter(ABC):  # noqa: B024  every method has a default: a reporter listens to what it likes
    """Listens to a run; ``StopRun``, raised in a method, ends it.

    Any other exception removes the reporter from the run, which goes on, and becomes the event
    ``reporter-failed``.
    """

    def started(self, manifest: Mapping[str, Any]) -> None:
        """The run is about to train."""
        return None

    def stepped(self, record: StepRecord) -> None:
        """A step that is to be logged was taken."""
        return None

    def evaluated(self, record: EvalRecord) -> None:
        """Metrics were computed."""
        return None

    def happened(self, event: Event) -> None:
        """Something noteworthy happened."""
        return None

    def finished(self, summary: Mapping[str, Any]) -> None:
        """The run is over, for whatever reason."""
        return None
