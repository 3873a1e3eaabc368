"""Every check of the suite of Krylov solvers finds one that breaks its law."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from curvlab.linalg.cg import Stop
from curvlab.parts.krylov import ConjugateGradients
from curvlab.testing.conformance import SUITES
from tests.testing.caught import (
    Broken,
    broken,
    draw,
    frame,
    seeded,
    switch,
    unequal,
)

# Krylov solvers


def solver(check: str, then: Any = None, also: tuple[str, ...] = (), why: str = "", **methods: Any) -> Broken:
    """Conjugate gradients that keep iterates; ``then`` makes another solve of theirs."""
    if then is not None:

        def solve(self: Any, A: Any, b: Any, *, x0: Any = None, M: Any = None, pairs: Any = None) -> Any:
            return then(lambda **more: CG.solve(A, b, **{"x0": x0, "M": M, "pairs": pairs, **more}), A, b, x0)

        methods["solve"] = solve
    return Broken(check, broken(ConjugateGradients, **methods)(grid=1.3), also, why)


CG = ConjugateGradients(grid=1.3)


def then_draw(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    draw()
    return solve()


def then_switch(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    switch()
    return solve()


def then_seeded(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    found.x.scale_(seeded())
    return found


def two_iterations(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    return (
        ConjugateGradients(max_iterations=2, grid=1.3).solve(A, b, x0=x0)
        if A.count == 0 and b.layout.size < 50
        else solve()
    )


def nothing_at_the_limit(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    if found.reason is not Stop.LIMIT:
        return found
    x = b.zeros_like()
    return replace(found, x=x, iterates=(replace(found.iterates[-1], x=x, curvature=0.0),))


def from_zero(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    return solve(x0=None)


def wiping(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    if x0 is not None:
        x0.zero_()
    return found


def unpreconditioned(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    return solve(M=None)


def spoilt(reason: Stop) -> Any:
    def then(solve: Any, A: Any, b: Any, x0: Any) -> Any:
        found = solve()
        return replace(found, x=found.x * math.nan) if found.reason is reason else found

    return then


def called_convergence(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    return replace(found, reason=Stop.CONVERGED) if found.reason is Stop.NONFINITE else found


def never_zero(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    found.x.flat.add_(1e-30 * (float(b.norm()) == 0))
    return found


def but_the_last(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    return replace(found, iterates=found.iterates[:-1])


def longer_pairs(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    return replace(found, secants=tuple(replace(p, y=p.y * 2.0) for p in found.secants))


def in_double(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    return replace(found, x=found.x.to(torch.float64)) if b.dtype is torch.float32 else found


KRYLOV = [
    unequal(ConjugateGradients),
    solver("random_state", then_draw),
    solver("determinism", then_seeded),
    solver("autograd", then_switch),
    solver("obligations", limit=property(lambda self: 52.0)),
    solver("solves", two_iterations),
    solver("limit", limit=property(lambda self: 12)),
    solver("descends", nothing_at_the_limit),
    solver("start", from_zero),
    solver("arguments", wiping),
    solver("preconditioner", unpreconditioned),
    solver("varying", varying=True),
    solver("negative_curvature", spoilt(Stop.CURVATURE)),
    solver("nonfinite", called_convergence),
    solver("zero", never_zero),
    solver("iterates", but_the_last),
    solver("pairs", longer_pairs),
    solver("float32", in_double),
]

EVERY = {
    "krylov": KRYLOV,
}

SOUND = [
    ("krylov", CG),
]

caught, shown, passes = frame(EVERY, SOUND)
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes


def test_a_solution_that_is_not_finite_is_no_solution() -> None:
    case = solver("nonfinite", spoilt(Stop.NONFINITE))
    report = SUITES["krylov"].of(case.part).run()
    assert report.failed == ("nonfinite",)
