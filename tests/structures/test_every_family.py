"""Every registered structure passes the suite that authors run on theirs, at every dimension from 1 to 9."""

from __future__ import annotations

from functools import lru_cache

import pytest

from curvlab.protocols.structure import Family
from curvlab.testing.conformance import Conformance, StructureConformance
from tests.structures.members import FAMILIES, GRAMS, GROUPS, REGISTERED, Naive


class Thorough(StructureConformance):
    """The suite at more dimensions than an author has the patience for."""

    dimensions = tuple(range(1, 10))


@lru_cache(maxsize=2)
def suite(family: Family) -> Conformance:
    return Thorough.of(family)


@pytest.mark.parametrize("check", Thorough.names())
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_every_family_keeps_every_law(family: Family, check: str) -> None:
    bound = suite(family)
    outcome = bound.outcome(bound.named(check))
    naive = isinstance(family, Naive) and check == "dense_detours"
    assert outcome.result in (("naive",) if naive else ("pass", "skip")), outcome.message


def test_few_laws_are_skipped() -> None:
    """Those of capabilities that a family has not: no check is left out for another reason."""
    for family in REGISTERED:
        bound = suite(family)
        for check in bound.checks():
            if check.capability == "Gram":
                assert (check.capability in bound.capabilities()) == (family in GRAMS)
            elif check.capability == "Group":
                assert (check.capability in bound.capabilities()) == (family in GROUPS)
            else:
                assert check.capability in ("", "linear")


def test_the_reference_pair_has_both_capabilities() -> None:
    from curvlab.structures.dense import Dense
    from curvlab.structures.diagonal import Diagonal

    for family in (Dense(), Diagonal()):
        assert family in GRAMS
        assert family in GROUPS
