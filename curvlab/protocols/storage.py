"""Storage: how what outlives a step is written, in the dtype of its role.

A step computes in its working dtype.  A state of the same dtype is changed in place; one of a narrower dtype
is read into the working dtype, changed there, and rounded once when it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from curvlab.linalg.rounding import stochastic
from curvlab.linalg.vectors import BlockVector
from curvlab.linalg.work import work_dtype
from curvlab.protocols.backend import Backend, Rounding
from curvlab.protocols.structure import Structure

M = TypeVar("M", bound=Structure)


@dataclass(frozen=True)
class Storage:
    """Writes states and parameters.

    ``noise`` draws for stochastic rounding, of bfloat16 alone; it is that of a step, so that a step that is
    made again, or made by several processes, rounds alike.
    """

    parameters: Rounding = "nearest"
    averages: Rounding = "nearest"
    noise: torch.Generator | None = None

    @classmethod
    def of(cls, backend: Backend, noise: torch.Generator) -> Storage:
        """As a precision says."""
        return cls(backend.parameter_rounding, backend.average_rounding, noise)

    @property
    def by_chance(self) -> bool:
        """Whether anything is rounded stochastically."""
        return "stochastic" in (self.parameters, self.averages)

    def write_(self, stored: Tensor, value: Tensor) -> Tensor:
        """stored ← value, a state of the method."""
        return self._written(stored, value, self.averages)

    def write_parameter_(self, parameter: Tensor, value: Tensor) -> Tensor:
        """parameter ← value."""
        return self._written(parameter, value, self.parameters)

    def updated(
        self, stored: BlockVector, change: Callable[[BlockVector], object], dtype: torch.dtype
    ) -> BlockVector:
        """``change`` made in place to a stored vector, in ``dtype``, which is not narrower.

        Returns what it then is, in ``dtype``, borrowed.
        """
        if stored.dtype == dtype:
            change(stored)
            return stored.borrow()
        wide = stored.to(dtype)
        change(wide)
        self.write_(stored.flat, wide.flat)
        return wide.borrow()

    def updated_(
        self, stored: Tensor, change: Callable[[Tensor], object], dtype: torch.dtype | None = None
    ) -> Tensor:
        """The same of a tensor; the result is not to be changed.  Without ``dtype``: float32 or wider."""
        work = dtype or work_dtype(stored.dtype)
        if stored.dtype == work:
            change(stored)
            return stored
        wide = stored.to(work)
        change(wide)
        self.write_(stored, wide)
        return wide

    def change_(self, stored: M, change: Callable[[M], object]) -> M:
        """``change`` made to a member of a structure in place, in float32 or wider."""
        work = work_of(stored)
        if stored.like.dtype == work:
            change(stored)
            return stored
        wide = to_dtype(stored, work)
        change(wide)
        for name, t in wide.tensors().items():
            self.write_(stored.tensors()[name], t)
        return stored

    def _written(self, stored: Tensor, value: Tensor, how: Rounding) -> Tensor:
        if value.dtype != stored.dtype and self._by_chance(stored, how):
            assert self.noise is not None
            return stored.copy_(stochastic(value, self.noise))
        return stored.copy_(value)

    def _by_chance(self, stored: Tensor, how: Rounding) -> bool:
        return how == "stochastic" and stored.dtype == torch.bfloat16


def work_of(stored: Structure) -> torch.dtype:
    """The dtype in which a member of a structure is changed: its own, float32 at least."""
    return work_dtype(stored.like.dtype)


def to_dtype(member: M, dtype: torch.dtype) -> M:
    """A member of a structure in another dtype; itself if it already is."""
    tensors = member.tensors()
    if all(t.dtype == dtype for t in tensors.values()):
        return member
    return replace(member, **{name: t.to(dtype) for name, t in tensors.items()})  # type: ignore[type-var]
