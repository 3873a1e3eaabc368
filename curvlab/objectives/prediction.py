"""What a loss reads of a model's outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from curvlab.linalg.work import work_dtype
from curvlab.objectives.nested import each_tensor
from curvlab.protocols.loss import Loss


def predicted(loss: Loss, outputs: Any) -> Any:
    """The prediction in ``outputs``, in float32 or wider.

    Sums over classes and examples lose digits in halves.  Gradients are rounded to the dtype of
    the outputs where they flow back into the model.
    """
    return each_tensor(_wide, loss.prediction(outputs))


def _wide(t: Tensor) -> Tensor:
    return t.to(work_dtype(t.dtype)) if t.is_floating_point() else t
