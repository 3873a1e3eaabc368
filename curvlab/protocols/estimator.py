"""Curvature estimators: what is believed about C, and how evidence changes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs

S = TypeVar("S", bound=Any)


class CurvatureEstimator(ABC, Generic[S]):
    """Holds an estimate of C, the GGN or Fisher matrix of the mean loss, as an operator."""

    @property
    def separable(self) -> bool:
        """Whether what it learns of a block depends on no other block."""
        return False

    def work(self, block: Block) -> float:
        """About how many flops an average step spends on a block (``Preconditioner.work``)."""
        return float(block.shape.numel())

    @abstractmethod
    def needs(self) -> Needs:
        """What ``observe`` wants to be evaluated."""

    @property
    def by_layer(self) -> bool:
        """Whether a layer's weight and bias should be one block."""
        return False

    def refuses(self, block: Block) -> str | None:
        """Why this block cannot be treated, or ``None``."""
        return None

    @abstractmethod
    def init(self, like: BlockVector, ctx: Context) -> S:
        """A fresh state for blocks of ``like``'s layout; every tensor it will ever hold, eagerly."""

    @abstractmethod
    def observe(self, state: S, seen: Evaluation, ctx: Context) -> None:
        """Take in one evaluation."""

    def observed(self, state: S) -> Mapping[str, int]:
        """How often each block was observed; blocks that are not counted are absent."""
        return {}

    @abstractmethod
    def curvature(self, state: S) -> LinearOperator[BlockVector]:
        """C, self-adjoint and PSD, undamped."""
