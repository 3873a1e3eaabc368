"""Krylov solvers as values: a rule for solving ``A x = b``, with its stopping rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.secants import Pairs
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.evidence import Solve


class Krylov(ABC):
    """A stateless solver for a PSD operator.

    ``varying``: whether M may change, or be non-linear, during a solve.
    """

    varying: ClassVar[bool] = False

    @property
    @abstractmethod
    def limit(self) -> int:
        """The most products with A that one solve makes."""

    @property
    def iterates(self) -> bool:
        """Whether a ``Solve`` carries earlier iterates, for a step rule to choose from."""
        return False

    @abstractmethod
    def solve(
        self,
        A: LinearOperator[BlockVector],
        b: BlockVector,
        *,
        x0: BlockVector | None = None,
        M: Callable[[BlockVector], BlockVector] | None = None,
        pairs: Pairs | None = None,
    ) -> Solve:
        """``A x = b`` from ``x0`` (zero if ``None``), ``M`` preconditioning residuals.

        ``pairs`` says which pairs ``(s, A s)`` are to be kept, in ``Solve.secants``.  Neither the damping
        of those nor that of ``Iterate.curvature`` is known here: both are those of A undamped, and a
        caller that shifted A corrects them.
        """
