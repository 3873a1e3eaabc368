"""Paths: the solutions of one damped system for every damping, which a trust-region rule follows."""

from __future__ import annotations

from abc import ABC, abstractmethod

from curvlab.linalg.vectors import BlockVector


class DampedPath(ABC):
    """``x(λ) = (C + λI)⁻¹ g`` for all λ from ``least`` on; ‖x(λ)‖ falls as λ grows.

    A part that measures steps in a metric M has M in place of I, and ``‖x‖² = xᵀMx`` for all lengths here.
    """

    #: the smallest damping that rounding allows
    least: float

    @property
    @abstractmethod
    def longest(self) -> float:
        """‖x(least)‖."""

    @abstractmethod
    def damping(self, radius: float) -> float:
        """The λ with ‖x(λ)‖ = radius; ``least`` for a radius of ``longest`` or more."""

    @abstractmethod
    def at(self, damping: float) -> BlockVector:
        """x(λ), a fresh vector."""

    @abstractmethod
    def predicted(self, damping: float) -> float:
        """Change of the undamped quadratic model, ``−gᵀx + ½ xᵀCx``."""

    @abstractmethod
    def beside(self, v: BlockVector, share: float, damping: float) -> BlockVector:
        """``share · v + (C + λI)⁻¹ (g − share · C v)``: a move along v and the step left after it."""
