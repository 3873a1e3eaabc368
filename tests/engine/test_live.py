"""Live knobs: a knob turned in a method that was built is the knob given when it is built."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from curvlab.engine.live import WELL_KNOWN, lacking, live, split_with_group, with_group
from curvlab.engine.method import Method
from curvlab.errors import ConfigError
from curvlab.model.partition import partition
from curvlab.parts.damping import Constant, LevenbergMarquardt
from curvlab.parts.identity import Identity
from curvlab.parts.schedules import Linear
from curvlab.parts.steps import Rate
from tests.engine.composed import METHODS, composed, network, optimizer

each = pytest.mark.parametrize("name", METHODS)


def other(value: Any) -> Any:
    """Another value that every part accepts in this one's place; ``None`` for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value == float("inf"):
        return None
    return value + 1 if isinstance(value, int) else value / 2 or 0.125


@each
def test_a_knob_turned_is_the_knob_given_at_the_start(name: str) -> None:
    method = composed(name)
    for knob in method.knobs:
        value = other(method.value(knob))
        if value is not None:
            turned = method.turned(knob, value)
            assert turned == composed(name, **{knob: value}) != method
            assert turned.value(knob) == value
            assert turned.knobs == method.knobs


@each
def test_what_a_knob_does_not_reach_is_shared(name: str) -> None:
    method = composed(name)
    turned = method.turned("lr", 0.5)
    assert turned.preconditioner is method.preconditioner
    assert turned.damping is method.damping
    if ("fallback", "step", "lr") not in method.knobs["lr"]:
        assert turned.fallback is method.fallback
    else:
        assert turned.fallback is not None
        assert method.fallback is not None
        assert turned.fallback.preconditioner is method.fallback.preconditioner


@each
def test_an_unknown_knob_is_refused_with_those_there_are(name: str) -> None:
    method = composed(name)
    assert method.value("learning_rate") is None
    with pytest.raises(ConfigError, match=r"no knob learning_rate.*\n.*lr"):
        method.turned("learning_rate", 0.5)


def test_a_part_refuses_a_value_as_it_does_at_the_start() -> None:
    with pytest.raises(ConfigError, match="beta"):
        with_group(composed("sgd"), "momentum", 1.0)


@each
def test_where_knobs_stand_is_no_part_of_what_a_method_is(name: str) -> None:
    method = composed(name)
    bare = copy.copy(method)
    object.__setattr__(bare, "knobs", {})
    assert bare == method
    assert repr(bare) == repr(method)
    assert "knobs" not in repr(method)
    blocks = partition(network(), method.preconditioner.joins).members
    taken = [b for b in blocks if method.preconditioner.refuses(b) is None]
    assert method.settled(taken).knobs == method.knobs


def test_a_knob_whose_part_was_replaced_has_no_place() -> None:
    method = composed("sgd", on_gradient=["momentum"])
    assert "weight_decay" not in method.knobs
    assert method.turned("momentum", 0.25) == composed("sgd", on_gradient=["momentum"], momentum=0.25)


@each
def test_weight_decay_is_of_all_parameters_and_unchanged_while_nobody_gives_it(name: str) -> None:
    method = composed(name, weight_decay=0.25)
    if method.fallback is not None:
        assert method.fallback == composed("adamw", weight_decay=0.25, lr=method.fallback.value("lr"))
        assert with_group(composed(name), "weight_decay", 0.25) == method
        default = 0.0 if name == "muon" else 0.01
        fallback = composed(name).fallback
        assert fallback is not None
        assert fallback.value("weight_decay") == default


@each
def test_every_live_key_can_be_set_and_is_shown_as_set(name: str) -> None:
    method = composed(name)
    for key, value in live(method).items():
        wanted = (0.5, 0.75) if key == "betas" else value / 2 + 0.125
        held = with_group(method, key, wanted)
        assert live(held) == {**live(method), key: wanted}
        assert with_group(held, key, value) == with_group(method, key, value)
        assert with_group(method, key, torch.tensor(0.5) if key != "betas" else [0.5, 0.5]) != method


@each
def test_momentum_can_be_cycled_and_what_is_lacking_is_known_by_name(name: str) -> None:
    keys = live(composed(name)).keys()
    assert keys & {"momentum", "betas"}
    assert set(lacking(composed(name))) == set(WELL_KNOWN) - keys


@pytest.mark.parametrize("key", ["nesterov", "betas", "weight_decoy"])
def test_a_key_that_is_not_live_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        with_group(composed("sgd"), key, 0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", True, None, (0.9, 0.9)])
def test_a_group_holds_finite_numbers(value: Any) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        with_group(composed("kfac"), "weight_decay", value)


def test_damping_that_adapts_is_not_live_and_a_schedule_is_shown_as_it_begins() -> None:
    adaptive = composed("kfac", damping={"use": "levenberg-marquardt", "initial": 3.0})
    assert isinstance(adaptive.damping, LevenbergMarquardt)
    assert "damping" not in live(adaptive)
    scheduled = composed("kfac", damping=Linear(start=2.0, end=1.0, steps=10))
    assert live(scheduled)["damping"] == 2.0
    assert with_group(scheduled, "damping", 0.5).damping == Constant(0.5)


def test_a_fallback_at_work_is_turned_beside_its_method() -> None:
    method = composed("kfac")
    assert method.fallback is not None
    fallback = method.fallback.turned("lr", 0.125)
    main, beside = split_with_group(method, fallback, "weight_decay", 0.5)
    assert main.value("weight_decay") == 0.5
    assert beside == fallback.turned("weight_decay", 0.5)
    assert split_with_group(method, fallback, "momentum", 0.5)[1] == fallback
    assert split_with_group(method, None, "lr", 0.5) == (method.turned("lr", 0.5), None)


def test_a_method_composed_in_place_has_a_rate_and_no_knobs() -> None:
    method = Method(preconditioner=Identity(), damping=Constant(), step=Rate(0.5))
    assert live(method) == {"lr": 0.5}
    with pytest.raises(ConfigError, match="written out in the configuration"):
        method.turned("lr", 0.1)


@each
def test_a_rate_of_zero_is_accepted(name: str) -> None:
    assert live(composed(name, lr=0.0))["lr"] == 0.0


def test_adamw_whose_betas_are_cycled_is_torchs() -> None:
    """As ``OneCycleLR`` cycles them: a moment of the gradient keeps the weights that it was given."""
    model = nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    torchs = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0)
    mine = optimizer("adamw", model, lr=0.1, weight_decay=0.0)
    for k, beta in enumerate([0.9, 0.5, 0.5, 0.95]):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(k))
        torchs.param_groups[0]["betas"] = (beta, 0.999)
        mine.param_groups[0]["betas"] = (beta, 0.999)
        for net, held in ((twin, torchs), (model, mine)):
            held.zero_grad()
            net(x).square().mean().backward()
            held.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
