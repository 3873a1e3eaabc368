"""What every part is told about the step it works in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from curvlab.protocols.backend import Backend


@dataclass(frozen=True)
class Context:
    """Step number (from 0), damping λ of ``C + λI``, arithmetic, randomness — and nothing else."""

    step: int
    damping: float
    backend: Backend
    generator: torch.Generator
