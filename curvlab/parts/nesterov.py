"""Transform: a moving average that counts the newest vector twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from curvlab.linalg.vectors import BlockVector
from curvlab.parts.transforms import AverageState, Averaging
from curvlab.protocols.step import At


@dataclass(frozen=True)
class Nesterov(Averaging):
    """Nesterov's momentum of an exponential moving average.

    ``s_t = β s_{t−1} + (1 − β) v_t``; the result is ``(β s_t + (1 − β) v_t) / (1 − βᵗ⁺¹)``, the average
    ``ema`` of v_1, …, v_t and v_t again.  Without ``bias_correction`` it is not divided: (1 − β) times the
    step of ``torch.optim.SGD(nesterov=True)``, and Muon's momentum (Jordan 2024).  β = 0 gives v itself.

    Holds one vector; costs two passes over it.  Source: Nesterov 1983; Sutskever et al. 2013, equations 3 and
    4.
    """

    def __call__(self, state: AverageState, v: BlockVector, at: At) -> BlockVector:
        beta = self.beta
        s = at.storage.updated(state.average, lambda s: s.combine_(beta, v, 1 - beta), v.dtype)
        # the sum of the weights of v_1 … v_t, which is 1 − βᵗ unless β has changed meanwhile
        state.count, state.mass = state.count + 1, beta * state.mass + 1 - beta
        out = v.empty_like()
        torch.lerp(v.flat, s.flat, beta, out=out.flat)
        return out.scale_(1 / (beta * state.mass + 1 - beta)) if self.bias_correction else out
