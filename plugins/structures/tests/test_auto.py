"""A structure that is chosen by dimension, and how it is written."""

from __future__ import annotations

from typing import Any

import pytest
import tomli
import torch

import curvlab.config
from curvlab.config import build_part
from curvlab.errors import CapabilityError, ConfigError
from curvlab.protocols.structure import Family, as_gram, as_group
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab_structures.auto import Auto
from curvlab_structures.block_diagonal import BlockDiagonal
from curvlab_structures.low_rank import LowRank
from curvlab_structures.triangular import LowerTriangular
from tests.limits.registered import registry

LIKE = torch.zeros(1)


def test_the_limit_itself_is_narrow() -> None:
    family = Auto(limit=5, wide=Diagonal())
    assert [type(family.at(d)) for d in (1, 5, 6, 100)] == [Dense, Dense, Diagonal, Diagonal]
    assert [family.scalars(d) for d in (5, 6)] == [25, 6]


def test_members_are_of_the_family_that_was_chosen() -> None:
    family = Auto(limit=3, wide=BlockDiagonal(2))
    X = torch.ones(2, 4)
    for M in (family.zeros(4, like=LIKE), family.eye(4, like=LIKE), family.project(X.mT @ X)):
        assert M.family == BlockDiagonal(2)
    assert family.member(torch.eye(3)).family == Dense()
    assert family.congruence(family.eye(4, like=LIKE), X).family == BlockDiagonal(2)


def test_choices_nest() -> None:
    family = Auto(narrow=Auto(narrow=LowRank(1), wide=Dense(), limit=2), wide=Diagonal(), limit=4)
    assert [family.at(d) for d in (2, 3, 5)] == [LowRank(1), Dense(), Diagonal()]
    assert family.options() == (LowRank(1), Dense(), Diagonal())


def test_it_can_do_what_all_its_options_can() -> None:
    assert as_gram(Auto(), "kfac") == Auto()
    assert as_group(Auto(), "singd") == Auto()
    with pytest.raises(CapabilityError, match="kfac needs .* Gram.* LowerTriangular is not one"):
        as_gram(Auto(wide=LowerTriangular()), "kfac")
    with pytest.raises(CapabilityError, match="singd needs .* Group.* LowRank is not one"):
        as_group(Auto(narrow=LowRank()), "singd")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('A = "auto"', Auto()),
        ('A = { use = "auto" }', Auto()),
        (
            'A = { use = "auto", limit = 500, wide = { use = "diagonal" } }',
            Auto(limit=500, wide=Diagonal()),
        ),
        ('A = { use = "auto", narrow = "low-rank", wide = "diagonal" }', Auto(LowRank(), Diagonal())),
    ],
)
def test_it_is_written_by_name_or_as_a_table(written: str, expected: Auto) -> None:
    """In a run's configuration, where what is resolved builds the same again."""
    data: dict[str, Any] = {
        "task": {"use": "digits"},
        "run": {"epochs": 1},
        "method": {"use": "kfac", "preconditioner": {"estimator": tomli.loads(written)}},
    }
    plan = curvlab.config.build(curvlab.config.load(data=data), registry())
    estimator: Any = plan.method.preconditioner.estimator  # type: ignore[attr-defined]
    assert (expected, Auto(limit=256)) == (estimator.A, estimator.B), "B is the method's own"
    again = curvlab.config.build(curvlab.config.load(data=plan.resolved), registry())
    assert again.method == plan.method


def test_a_limit_below_one_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="limit = 0 must be at least 1"):
        build_part(registry(), Family, "auto", {"limit": 0})
