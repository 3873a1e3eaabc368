"""Tasks: a model, data and a measure of success; the recipe and the workload made from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from curvlab.protocols.objective import Objective
from curvlab.protocols.picture import Picture
from curvlab.protocols.preparation import Preparation
from curvlab.protocols.sampler import Draw


class Workload(ABC):
    """A task made ready: a live model beside its data."""

    model: nn.Module

    @property
    @abstractmethod
    def size(self) -> int:
        """How many training examples a sampler may index."""

    @abstractmethod
    def objective(self, draw: Draw) -> Objective:
        """The objective of one step."""

    @abstractmethod
    def metrics(self) -> Mapping[str, float]:
        """Held-out metrics by name (``val_loss``, ``val_accuracy``, …) at the current parameters."""

    def pictures(self) -> Sequence[Picture]:
        """What there is to see at the current parameters, for ``curvlab plot``; by default nothing.

        As ``metrics``, it changes neither the model nor its modes.
        """
        return ()


class Task(ABC):
    """A recipe, frozen: what is trained on what.  ``batch_size`` is what ``uniform`` draws."""

    batch_size: int
    #: the metric that a run is judged by, and whether more of it is better
    judged_by: ClassVar[tuple[str, bool]] = ("val_loss", False)
    #: what makes its data beforehand, by ``curvlab tasks prepare``; ``None`` if nothing has to
    preparation: ClassVar[type[Preparation] | None] = None

    def examples(self) -> int | None:
        """How many training examples there are, where that is known without reading data."""
        return None

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model, initialized from torch's global generator, on torch's default device."""

    @abstractmethod
    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> Workload:
        """The data, loaded and converted, beside ``model`` moved there; raises ``DataError``."""
