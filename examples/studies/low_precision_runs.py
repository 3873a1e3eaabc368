"""One training run of the study of low precision: who, in which precision, on which network; what is kept."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import math
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from defaults import TASKS, batches, training_loss
from half_products import HalfProducts
from torch import Tensor, nn

import curvlab
from curvlab.errors import CurvlabError
from curvlab.objectives.mismatch import LayerMismatch
from curvlab.tasks.fashion_mnist import FashionMnist
from curvlab.tasks.supervised import SupervisedWorkload

#: networks on Fashion-MNIST, batch 128
NETS: Mapping[str, Any] = {"narrow": FashionMnist(hidden=(32, 32)), **TASKS}

FLOAT32: Mapping[str, Any] = {"use": "float32"}
MIXED: Mapping[str, Any] = {"use": "mixed-bfloat16"}
BFLOAT16: Mapping[str, Any] = {"use": "bfloat16"}

#: of the smoothed loss; batches that its start is averaged over; points of a curve that are kept
DECAY, START, POINTS = 0.98, 10, 20


@dataclass(frozen=True)
class Entrant:
    """A method with its knobs, under the name that tables give it; ``precision`` adds to every precision."""

    name: str
    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    precision: Mapping[str, Any] = field(default_factory=dict)

    def in_(self, precision: Mapping[str, Any]) -> dict[str, Any]:
        """The precision as a table."""
        return {**precision, **self.precision}

    def key(self, precision: Mapping[str, Any], **more: object) -> dict[str, object]:
        """A run's name; ``made`` is a digest of every setting, defaults included."""
        made = self.optimizer(nn.Linear(2, 2).to(dtype_of(precision)), precision, 0)
        text = repr((made.method, made.backend))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return {"name": self.name, "precision": self.in_(precision), **more, "made": digest}

    def optimizer(
        self, model: nn.Module, precision: Mapping[str, Any], seed: int
    ) -> curvlab.CurvatureOptimizer:
        """The method at work on a model."""
        return curvlab.optimizer(self.method, model, precision=self.in_(precision), seed=seed, **self.knobs)


def dtype_of(precision: Mapping[str, Any]) -> torch.dtype:
    """The dtype of the parameters."""
    return torch.bfloat16 if precision["use"] == "bfloat16" else torch.float32


def train(entrant: Entrant, precision: Mapping[str, Any], net: str, steps: int, seed: int) -> dict[str, Any]:
    """One run.

    ``start`` is the loss of the untrained network on the first batches, and ``curve`` the smoothed loss at
    equal distances.  ``end`` and ``worst`` are its last and largest value; ``loss`` is that of the trained
    parameters on 2,000 training examples, evaluated in float32.  ``not_finite`` counts losses, and numbers
    among parameters and states at the end; ``events`` what the optimizer reported and warned of, by name.
    """
    task = NETS[net]
    torch.manual_seed(seed)
    work = task.workload(task.model(), dtype=dtype_of(precision), device=torch.device("cpu"))
    optimizer = entrant.optimizer(work.model, precision, seed)
    events: Counter[str] = Counter()
    optimizer.on_event = lambda event: events.update([event.name])
    drawn = batches(work, task.batch_size, seed)
    first = list(itertools.islice(drawn, START))
    start = sum(loss_of(work, *batch) for batch in first) / START
    curve: list[float] = []
    total, smoothed, worst, lost, failure = 0.0, math.nan, 0.0, 0, ""
    begun = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LayerMismatch)
        for k, (x, y) in enumerate(itertools.islice(itertools.chain(first, drawn), steps), 1):
            try:
                with HalfProducts() if precision["use"] != "float32" else contextlib.nullcontext():
                    loss = float(optimizer.step(curvlab.objective(work.model, work.loss, x, y)))
            except CurvlabError as error:
                failure = f"step {k}: {error}"
                break
            lost += not math.isfinite(loss)
            total = DECAY * total + (1 - DECAY) * loss
            smoothed = total / (1 - DECAY**k)
            worst = max(worst, smoothed) if k >= min(START, steps) else worst
            if k % max(steps // POINTS, 1) == 0:
                curve.append(round(smoothed, 5))
    events.update("layer-mismatch" for w in caught if issubclass(w.category, LayerMismatch))
    seconds = time.process_time() - begun
    return {
        "start": start, "end": smoothed, "worst": worst, "loss": final_loss(work), "curve": curve,
        "not_finite": lost + not_finite([*work.model.parameters(), *optimizer.snapshot()[0].values()]),
        "events": dict(events), "bytes": optimizer.state_bytes(), "seconds": round(seconds, 1),
        "failure": failure,
    }  # fmt: skip


@torch.no_grad()
def loss_of(work: SupervisedWorkload, x: Tensor, y: Tensor) -> float:
    """The mean loss of a batch."""
    return float(work.loss.mean(work.model(x), y))


def final_loss(work: SupervisedWorkload) -> float:
    """The loss on the first training examples in float32, whatever the model was trained in."""
    device = torch.device("cpu")
    wide = SupervisedWorkload(
        copy.deepcopy(work.model).float(),
        work.loss,
        work.training.to(dtype=torch.float32, device=device),  # type: ignore[attr-defined]
        work.validation,
    )
    return training_loss(wide)


def not_finite(tensors: list[Tensor]) -> int:
    """Numbers that are not finite."""
    return sum(int((~torch.isfinite(t)).sum()) for t in tensors if t.is_floating_point())


def held(found: Mapping[str, Any]) -> bool:
    """Whether a run met the criterion of the study of stability: all finite, never above its start."""
    return not found["failure"] and not found["not_finite"] and found["worst"] <= found["start"]
