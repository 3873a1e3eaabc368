"""What all of the structures' suite shares: the family, and the dimensions at which laws are checked."""

from __future__ import annotations

from typing import Any, ClassVar

from curvlab.protocols.structure import Family
from curvlab.testing.conformance.suite import Conformance
from curvlab.testing.members import member


class FamilyChecks(Conformance):
    """A family under check."""

    part: Family

    #: one, the small, a prime, and one that blocks and tiles do not divide
    dimensions: ClassVar[tuple[int, ...]] = (1, 2, 3, 5, 9)

    @property
    def name(self) -> str:
        """The family's class, for messages."""
        return type(self.part).__name__

    def member(self, d: int, seed: int, *batch: int) -> Any:
        """Any member of dimension d."""
        return member(self.part, d, seed, *batch)
