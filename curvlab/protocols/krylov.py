"""Krylov solvers as values: a rule for solving ``A x = b``, with its stopping rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.evidence import Solve


class Krylov(ABC):
    """A stateless solver for a PSD operator."""

    @property
    @abstractmethod
    def limit(self) -> int:
        """The most products with A that one solve makes."""

    @abstractmethod
    def solve(
        self,
        A: LinearOperator[BlockVector],
        b: BlockVector,
        *,
        x0: BlockVector | None = None,
        M: Callable[[BlockVector], BlockVector] | None = None,
    ) -> Solve:
        """``A x = b`` from ``x0`` (zero if ``None``), ``M`` preconditioning residuals."""
