"""A small task whose network normalizes batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from curvlab.protocols.task import Task, Workload
from curvlab.tasks.teacher_student import TeacherStudent


@dataclass(frozen=True)
class Normalized(Task):
    """Teacher and student, with batch normalization."""

    batch_size: int = 5

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> Workload:
        base = TeacherStudent(inputs=4, hidden=(8,), outputs=2, size=72, validation_size=32)
        return base.workload(model, dtype=dtype, device=device)
