"""What a linear map is: something that can be multiplied with a vector.

Curvature estimates and their inverses are operators, never matrices.  ``self_adjoint`` and ``psd``
are promises that a class makes; solvers demand them and the test suites verify them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockVector

V = TypeVar("V", bound="Tensor | BlockVector")


class LinearOperator(ABC, Generic[V]):
    """A linear map of a vector space onto itself; ``V`` is one block's tensor or a ``BlockVector``."""

    self_adjoint: ClassVar[bool] = False  #: ⟨u, Av⟩ = ⟨Au, v⟩
    psd: ClassVar[bool] = False  #: self-adjoint and ⟨v, Av⟩ ≥ 0

    @abstractmethod
    def __matmul__(self, v: V) -> V:
        """The product with ``v``; ``v`` is not changed."""


class BlockOperator(ABC):
    """A linear map on the tensors of one block (``[o, i]`` for a layer), held or factored.

    The one obligation is ``product``: it may choose its contraction order from the shapes and from
    whether ``v`` still comes as factors.
    """

    @abstractmethod
    def product(self, v: Tensor | Outer, out: Tensor | None = None) -> Tensor | Outer:
        """The image of ``v``, as factors or as a matrix; a matrix is written into ``out`` if given."""

    def __matmul__(self, v: Tensor) -> Tensor:
        image = self.product(v)
        return image.dense() if isinstance(image, Outer) else image


def dense_block(operator: BlockOperator, like: Tensor) -> Float[Tensor, "d d"]:
    """The matrix of a block operator on row-major ``vec(v)``; d products, for tests and reference."""
    eye = torch.eye(like.numel(), dtype=like.dtype, device=like.device)
    return torch.stack([(operator @ e.view(like.shape)).reshape(-1) for e in eye], dim=1)


def dense(operator: LinearOperator[BlockVector], like: BlockVector) -> Float[Tensor, "D D"]:
    """The matrix of an operator on block vectors; D products, for tests and reference."""
    columns = []
    for k in range(like.layout.size):
        unit = like.zeros_like()
        unit.flat[k] = 1.0
        columns.append((operator @ unit).flat)
    return torch.stack(columns, dim=1)
