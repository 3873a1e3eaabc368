"""A preconditioner that holds others is ready when all of them are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from curvlab.config.schema import element, kind_of, members, settings_of
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.grafted import Grafted
from curvlab.parts.identity import Identity
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.routed import Routed
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.registry.imports import part_class
from curvlab.registry.loader import installed
from curvlab_lbfgs.lbfgs import Lbfgs
from tests.parts.vectors import context, vector


@dataclass
class Seen:
    """How many gradients."""

    count: int = 0


@dataclass(frozen=True)
class Second(Preconditioner[Seen]):
    """Ready with the second gradient."""

    def init(self, like: BlockVector, ctx: Context) -> Seen:
        return Seen()

    def observe(self, state: Seen, seen: Evaluation, ctx: Context) -> None:
        state.count += 1

    def ready(self, state: Seen) -> bool:
        return state.count > 1

    def apply(self, state: Seen, v: BlockVector, ctx: Context) -> Solve:
        return Solve(v.borrow())


HOLDERS: list[Preconditioner[Any]] = [
    Grafted(Second(), Identity()),
    Grafted(Identity(), Second()),
    Routed({"none": Second(), "a": Identity(), "*": Second()}),
    Iterative(GaussNewton(), ConjugateGradients(), inner=Second()),
    Lbfgs(initial=Second()),
]


@pytest.mark.parametrize("part", HOLDERS, ids=lambda part: type(part).__name__)
def test_it_waits_for_every_part_in_it(part: Preconditioner[Any]) -> None:
    state, ready = part.init(vector(), context()), []
    for step in range(3):
        part.observe(state, Evaluation(1, vector().flat.sum(), vector()), context(step))
        ready.append(part.ready(state))
    assert ready == [False, True, True]


def test_every_part_that_holds_preconditioners_is_shown() -> None:
    def holds(annotation: Any) -> bool:
        options = members(annotation)
        return any(kind_of(o) == "preconditioner" or kind_of(element(o)) == "preconditioner" for o in options)

    found = {
        cls
        for entry in installed().parts("preconditioner")
        for cls in [part_class(entry)]
        if any(holds(s.annotation) for s in settings_of(cls).values())
    }
    assert found == {type(part) for part in HOLDERS}
