"""Dtypes: a role for each kind of number in training, and the dtype that a precision gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from curvlab.linalg.work import work_dtype

#: what is stored between steps beside the parameters
Role = Literal["factors", "inverse_factors", "moments", "work"]


@dataclass(frozen=True)
class Dtypes:
    """The dtype of each role.

    | role | what has it |
    |---|---|
    | ``parameters`` | parameters, their gradients, buffers |
    | ``compute`` | forward and backward passes, by autocast; ``None``: that of the parameters |
    | ``rows`` | rows of layer statistics; ``None``: that of the layer's output |
    | ``factors`` | estimates of curvature, to be factorized (KFAC's A and B); their inverses and bases |
    | ``inverse_factors`` | factors of inverses that only products touch (SINGD's K and C), their momenta |
    | ``moments`` | moving averages of gradients and of their squares |

    What exists within a step only (gradients as vectors, directions, updates, sums over rows), and what one
    solve hands to the next (secant pairs, a start), is in ``work``, which is float32 or wider.
    Factorizations are in float32 or wider, too (``Backend``).
    """

    parameters: torch.dtype
    compute: torch.dtype | None
    rows: torch.dtype | None
    factors: torch.dtype
    inverse_factors: torch.dtype
    moments: torch.dtype

    @classmethod
    def uniform(cls, dtype: torch.dtype) -> Dtypes:
        """One dtype for everything."""
        return cls(dtype, None, None, dtype, dtype, dtype)

    @property
    def work(self) -> torch.dtype:
        """What a step computes in."""
        return work_dtype(self.parameters)

    def of(self, role: Role) -> torch.dtype:
        """The dtype of what is stored in this role."""
        found: torch.dtype = getattr(self, role)
        return found
