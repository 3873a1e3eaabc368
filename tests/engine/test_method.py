"""A method is a composition: its needs are its parts', and so are its states."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from curvlab.engine.coverage import Coverage
from curvlab.engine.method import Method
from curvlab.linalg.vectors import BlockLayout
from curvlab.parts.damping import Constant, LevenbergMarquardt
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.identity import Identity
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.steps import Armijo, QuadraticModel, Rate
from curvlab.parts.transforms import Ema, Momentum, WeightDecay
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.needs import GRADIENT_ONLY, Labels, Needs
from tests.engine.composed import composed

LIKE = BlockLayout({"a": (2, 3), "b": (4,)}).zeros(like=torch.zeros(()))
CTX = Context(0, 1.0, Full(), torch.Generator())


def test_needs_unite_and_what_is_counted_adds_up() -> None:
    a = Needs(frozenset({Labels.DATA}), samples=1, products=2, losses=3)
    b = Needs(frozenset({Labels.MODEL}), samples=4, factored=True, implicit=True, losses=5)
    assert a | b == b | a == Needs(frozenset({Labels.DATA, Labels.MODEL}), 4, True, True, 2, 8)
    assert a | GRADIENT_ONLY == a
    assert [Needs().ggn, Needs(products=1).ggn, Needs(implicit=True).ggn] == [False, True, True]


def test_needs_say_in_words_what_a_plain_backward_cannot_give() -> None:
    assert GRADIENT_ONLY.objective == ()
    assert Needs(frozenset({Labels.DATA, Labels.NONE}), factored=True).objective == ()
    everything = Needs(frozenset(Labels), products=1, losses=1)
    assert everything.objective == (
        "layer statistics for labels = 'model'",
        "layer statistics for labels = 'exact'",
        "Gauss-Newton products",
        "trial losses",
    )


def test_a_methods_needs_are_those_of_all_its_parts_in_that_step() -> None:
    method = Method(
        Iterative(GaussNewton(), ConjugateGradients(10)), LevenbergMarquardt(interval=2), Armijo(tries=7)
    )
    cg = ConjugateGradients(10).limit
    assert method.needs(0) == Needs(implicit=True, products=cg, losses=7)
    assert method.needs(1) == Needs(implicit=True, products=cg + 1, losses=8)
    assert Method(Identity(), Constant(), Rate(0.1)).needs(0) == GRADIENT_ONLY


@pytest.mark.parametrize("refresh", [1, 4])
def test_layer_statistics_are_asked_for_on_refreshing_steps_alone(refresh: int) -> None:
    method = composed("kfac", refresh=refresh)
    asking = [bool(method.needs(step).layers) for step in range(8)]
    assert asking == [step % refresh == 0 for step in range(8)]


def test_states_stand_in_the_places_of_their_parts() -> None:
    method = Method(
        Identity(),
        LevenbergMarquardt(initial=2.0),
        QuadraticModel(),
        on_gradient=(WeightDecay(0.1), Ema(0.9)),
        on_update=(Momentum(0.9),),
    )
    state = method.init(LIKE, CTX)
    assert state.preconditioner is None
    assert state.damping.damping == 2.0
    assert torch.equal(state.step.previous.flat, torch.zeros(10))
    assert state.on_gradient[0] is None
    assert state.on_gradient[1].count == 0
    assert torch.equal(state.on_update[0].flat, torch.zeros(10))


def test_methods_are_values() -> None:
    method = composed("kfac")
    assert method == composed("kfac")
    assert method != composed("kfac", lr=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.sampler = None  # type: ignore[misc]


def test_a_row_of_coverage_says_all_it_knows() -> None:
    row = Coverage("1.weight", (2, 3), "1", "kfac")
    assert row.as_row() == {
        "parameter": "1.weight",
        "shape": [2, 3],
        "block": "1",
        "treatment": "kfac",
        "reason": "",
    }
