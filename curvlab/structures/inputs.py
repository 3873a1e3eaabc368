"""The family of a factor of inputs: that which is asked for, unless it cannot average the rows there are."""

from __future__ import annotations

from curvlab.linalg.vectors import BlockLayout
from curvlab.protocols.structure import Family
from curvlab.structures.diagonal import Diagonal


def family_of_inputs(family: Family, layout: BlockLayout, block: str) -> Family:
    """``family``, or ``Diagonal`` for one-hot rows, unless the family says that it averages lookups.

    The second moment of one-hot rows is diagonal, so nothing is lost.
    """
    chosen = family.at(layout.shapes[block][1])
    if block in layout.one_hot and not chosen.averages_lookups:
        return Diagonal()
    return family
