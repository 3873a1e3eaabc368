"""The settings of the part: what they are, what they refuse, and what a pattern of layers chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.config import build_method, build_part
from curvlab.errors import CapabilityError, ConfigError
from curvlab.protocols.needs import Labels
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.structure import Family, Structure
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.problems import DTYPE, normal
from curvlab_singd.singd import Singd
from plugins.singd.tests.bare import PLAIN, matrices, optimizer, singd, theta
from tests.limits.registered import registry


def test_these_tests_spell_every_setting_out() -> None:
    """So that no default, old or new, has a part in what they find."""
    assert {f.name for f in fields(Singd)} == {"K", "C", *PLAIN}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("every", 0),
        ("samples", 0),
        ("limit", 0.0),
        ("limit", -1.0),
        ("fit", -1),
        ("lr", -0.01),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = {value}"):
        singd(**{name: value})


@pytest.mark.parametrize(
    "edge", [{"momentum": 0.0}, {"every": 1}, {"limit": float("inf")}, {"lr": 0.0}, {"fit": 0}], ids=str
)
def test_the_ends_of_the_ranges_are_within(edge: dict[str, Any]) -> None:
    singd(**edge)


@pytest.mark.parametrize(("every", "rate"), [(1, 0.01), (5, 0.05), (10, 0.1), (100, 0.1)])
def test_without_a_rate_factors_remember_as_many_steps_however_often_they_are_updated(
    every: int, rate: float
) -> None:
    def moved(lr: float | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3, dtype=DTYPE)
        ours = optimizer(model, singd(every=every, lr=lr))
        for step in range(2 * every + 1):
            x = normal(8, 4, seed=step)
            ours.zero_grad()
            model(x).square().mean().backward()  # type: ignore[no-untyped-call]
            ours.step()
        return ours.snapshot()[0]

    default, same, other = moved(None), moved(rate), moved(1.5 * rate)
    assert all(torch.equal(t, same[name]) for name, t in default.items())
    assert not all(torch.equal(t, other[name]) for name, t in default.items())


def test_labels_that_give_no_gradients_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'labels = "none"'):
        singd(labels=Labels.NONE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", 3),
        ("coupling", "loose"),
        ("labels", "true"),
        ("sharing", "both"),
        ("lr", "fast"),
        ("nonsense", 1),
    ],
)
def test_a_configuration_names_what_it_does_not_know(name: str, value: Any) -> None:
    settings = {"K": {"use": "dense"}, "C": {"use": "dense"}, name: value}
    with pytest.raises(ConfigError, match=name):
        build_part(registry(), Preconditioner, "singd", settings)


@dataclass(frozen=True)
class NoGroup(Family):
    """A family that is not closed under products."""

    def project(self, S: Tensor) -> Structure:
        return Dense().project(S)

    def scalars(self, d: int) -> int:
        return d * d


@pytest.mark.parametrize("side", ["K", "C"])
def test_a_family_that_is_no_group_is_refused(side: str) -> None:
    families: dict[str, Family] = {"K": Dense(), "C": Dense(), side: NoGroup()}
    with pytest.raises(CapabilityError, match="NoGroup"):
        singd(**families)


def test_each_side_has_a_family_of_its_own() -> None:
    found = optimizer(nn.Linear(4, 3).double(), singd(Dense(), Diagonal()))
    (f,) = found.arms[0].state.preconditioner.blocks.values()
    assert (f.K.family, f.C.family) == (Dense(), Diagonal())
    assert (f.K.d, f.C.d) == (5, 3)


# sharing by pattern


class Pooled(nn.Module):
    """Two layers at four positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 5).to(DTYPE), nn.Linear(5, 3).to(DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x))).mean(1)
        return y


def one_step(sharing: Any) -> dict[str, Tensor]:
    model = Pooled()
    ours = optimizer(model, singd(sharing=sharing))
    x, y = normal(6, 4, 4, seed=1), normal(6, 3, seed=2)
    nn.functional.mse_loss(model(x), y).backward()
    before = theta(model)
    try:
        ours.step()
    except ConfigError:
        assert torch.equal(theta(model), before)
        raise
    return matrices(ours)


def test_a_pattern_of_names_chooses_how_a_layer_is_shared() -> None:
    """The first pattern that matches; here the second layer of each pair is left to "auto", which reduces."""
    expand, reduce = one_step("expand"), one_step("reduce")
    assert not any(torch.allclose(M, reduce[name], rtol=1e-6) for name, M in expand.items())
    chosen: list[tuple[Mapping[str, str], tuple[dict[str, Tensor], dict[str, Tensor]]]] = [
        ({"first": "expand", "*": "auto"}, (expand, reduce)),
        ({"f*": "reduce", "s?cond": "expand"}, (reduce, expand)),
        ({"*": "expand", "first": "reduce"}, (expand, expand)),
    ]
    for sharing, (first, second) in chosen:
        for name, M in one_step(sharing).items():
            assert torch.equal(M, (first if name.endswith("first") else second)[name]), (sharing, name)


def test_a_layer_that_no_pattern_names_is_refused_before_anything_moves() -> None:
    with pytest.raises(ConfigError, match=r'none of the patterns first matches block "second"'):
        one_step({"first": "reduce"})


def test_a_configuration_may_give_patterns() -> None:
    sharing = {"first": "reduce", "*": "auto"}
    method = build_method(registry(), "singd", {}, {"preconditioner.sharing": sharing})
    part = method.preconditioner
    assert isinstance(part, Singd)
    assert part.sharing == sharing
