"""The suite of structures: families of patterned square matrices."""

from __future__ import annotations

from curvlab.protocols.structure import Gram, Group
from curvlab.testing.conformance.carriage import CarriageChecks
from curvlab.testing.conformance.grams import GramChecks
from curvlab.testing.conformance.groups import GroupChecks
from curvlab.testing.conformance.manners import MannersChecks
from curvlab.testing.conformance.members import MemberChecks
from curvlab.testing.conformance.stacks import StackChecks


class StructureConformance(MannersChecks, CarriageChecks, StackChecks, GroupChecks, GramChecks, MemberChecks):
    """A family against the dense matrices that its members stand for.

    Capabilities: ``Gram`` and ``Group`` as the family has them; ``linear`` if its members are a vector space.
    """

    kind = "structure"

    def capabilities(self) -> frozenset[str]:
        can = {"Gram": isinstance(self.part, Gram), "Group": isinstance(self.part, Group)}
        can["linear"] = self.part.at(9).linear
        return frozenset(name for name, able in can.items() if able)
