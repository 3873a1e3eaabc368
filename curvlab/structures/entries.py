"""Families said by two methods: which entries of a matrix are kept, and the matrix that they make.

For patterns whose scalars *are* entries of the matrix (triangles, arrows, blocks, bands): an author writes
``member`` and ``dense``, and the projection with its factor 2 follows.  Everything else has the protocol's
dense fallbacks, each of which names the method worth writing next.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import PluginError
from curvlab.protocols.structure import Family, Group, Member, Structure, naive


@dataclass(frozen=True)
class EntryMatrix(Structure):
    """A member: its fields of type ``Tensor`` hold the free entries.  Owes ``dense``.

    ``d`` and ``batch`` can usually be read from the shape of a field; until they are written, each makes
    the dense matrix and warns.
    """

    family: Family

    @cached_property
    def d(self) -> int:
        naive(self, "d")
        return int(self.dense().shape[-1])

    def tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class EntryFamily(Family, Group[Member]):
    """The family of all matrices that are zero outside a pattern, closed under products.

    ``EntryFamily[ArrowMatrix]`` says the class of its members.

    Owes ``member``, which copies the free entries out of A and reads no other.  ``project`` weighs an
    entry twice whose mirror image is not free (d² flops beside ``member``); a family whose scalars are
    not entries (constant diagonals, say) writes its own; a ``PluginError`` says so.
    """

    @abstractmethod
    def member(self, A: Float[Tensor, "*b d d"]) -> Member:
        """The member with the free entries of A, copied."""

    def project(self, S: Float[Tensor, "*b d d"]) -> Member:
        return self.member(S * _weights(self, S.shape[-1], S.dtype, S.device))

    def scalars(self, d: int) -> int:
        return _scalars(self, d)


@lru_cache(maxsize=256)
def _scalars(family: EntryFamily[Any], d: int) -> int:
    return sum(t.numel() for t in family.member(torch.empty(d, d, device="cpu")).tensors().values())


@lru_cache(maxsize=16)
def _weights(
    family: EntryFamily[Any], d: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "d d"]:
    """1 where an entry and its mirror image are free, 2 where it alone is: a symmetric part is half of it."""
    free: Tensor = family.member(torch.ones(d, d, dtype=torch.float64, device="cpu")).dense()
    probe = torch.arange(1.0, d * d + 1, dtype=torch.float64, device="cpu").view(d, d)
    if not torch.equal(family.member(probe).dense(), probe * (free != 0)):
        name = type(family).__name__
        raise PluginError(
            f"{name}: dense() of member(A) must be A at the free entries and zero elsewhere (dimension {d}); "
            f"fix the two, or define {name}.project if the scalars of a member are not entries of its matrix"
        )
    return (2.0 / (free + free.mT).clamp(min=1.0)).to(dtype=dtype, device=device)
