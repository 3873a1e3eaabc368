"""Methods spelled out: knobs, deeper tables, and which of them wins."""

from __future__ import annotations

from typing import Any

import pytest

from curvlab.config import build_method, load
from curvlab.config.composition import compose
from curvlab.config.tree import plain
from curvlab.errors import ConfigError, Fault
from curvlab.parts.damping import Constant, LevenbergMarquardt
from curvlab.parts.schedules import Cosine
from curvlab.parts.steps import Armijo, Rate
from curvlab.registry import Registry


def composed(registry: Registry, method: Any, *overrides: str) -> tuple[Any, list[Fault]]:
    faults: list[Fault] = []
    layers = load(data={"method": method}, overrides=overrides)
    found = compose(layers.tree.table["method"], registry, faults)
    return None if found is None else plain(found.table), faults


def test_a_method_without_knobs_is_its_files_composition(registry: Registry) -> None:
    table, faults = composed(registry, "plain")
    assert not faults
    assert table == dict(registry.method("plain").document["method"])


def test_a_knob_sets_every_path_it_names(registry: Registry) -> None:
    table, faults = composed(registry, {"use": "fake", "lr": 0.5})
    assert not faults
    assert table["step"]["lr"] == table["fallback"]["lr"] == 0.5


def test_a_knob_enters_arrays_by_index_and_by_use(registry: Registry) -> None:
    table, _ = composed(registry, {"use": "fake", "momentum": 0.1, "first": 0.2})
    assert table["on_update"] == [{"use": "weight-decay", "rate": 0.2}, {"use": "momentum", "beta": 0.1}]


def test_a_structure_knob_takes_a_name_or_a_table(registry: Registry) -> None:
    by_name, _ = composed(registry, {"use": "fake", "structure": "diagonal"})
    by_table, _ = composed(registry, {"use": "fake", "structure": {"use": "diagonal"}})
    estimator = {"use": "layered", "decay": 0.9, "A": {"use": "diagonal"}, "B": {"use": "diagonal"}}
    assert by_table["preconditioner"]["estimator"] == estimator
    as_names = {**estimator, "A": "diagonal", "B": "diagonal"}
    assert by_name["preconditioner"]["estimator"] == as_names


@pytest.mark.parametrize("order", [("structure", "structure_in"), ("structure_in", "structure")])
def test_of_two_knobs_for_one_path_the_more_specific_wins(registry: Registry, order: tuple[str, str]) -> None:
    values = {"structure": "diagonal", "structure_in": "dense"}
    method = build_method(registry, "fake", {knob: values[knob] for knob in order})
    estimator = method.preconditioner.estimator  # type: ignore[attr-defined]
    assert [type(estimator.A).__name__, type(estimator.B).__name__] == ["Dense", "Diagonal"]


def test_a_deeper_table_changes_one_setting_of_the_composition(registry: Registry) -> None:
    table, _ = composed(registry, {"use": "fake", "preconditioner": {"refresh_every": 3}})
    assert table["preconditioner"]["refresh_every"] == 3
    assert table["preconditioner"]["estimator"] == {"use": "layered", "decay": 0.9}


def test_a_table_that_names_its_part_keeps_nothing_of_the_composition(registry: Registry) -> None:
    """In a table or by a bare name, and although the method has the very same parts there."""
    given = {"use": "layered", "A": "diagonal"}
    table, faults = composed(registry, {"use": "fake", "preconditioner": {"estimator": given}})
    assert not faults
    assert table["preconditioner"]["estimator"] == given
    turned, _ = composed(registry, {"use": "fake", "structure": "dense", "step": "rate", "lr": 0.5})
    assert turned["step"] == {"use": "rate", "lr": 0.5}


def test_layers_of_the_user_still_merge_key_by_key(registry: Registry) -> None:
    method = {"use": "fake", "preconditioner": {"estimator": {"use": "layered", "A": "diagonal"}}}
    table, _ = composed(registry, method, 'method.preconditioner.estimator={use = "layered", decay = 0.5}')
    assert table["preconditioner"]["estimator"] == {"use": "layered", "A": "diagonal", "decay": 0.5}


def test_a_knob_reaches_the_part_that_a_table_put_in_its_place(registry: Registry) -> None:
    method = build_method(registry, "fake", {"lr": 0.7}, {"step": "armijo"})
    assert method.step == Armijo(lr=0.7)


@pytest.mark.parametrize(
    ("file", "override", "lr"),
    [
        ({"use": "plain", "step": {"lr": 0.1}}, "method.lr=0.2", 0.2),
        ({"use": "plain", "lr": 0.1}, "method.step.lr=0.2", 0.2),
    ],
)
def test_between_knob_and_table_the_later_layer_wins(
    registry: Registry, file: Any, override: str, lr: float
) -> None:
    table, faults = composed(registry, file, override)
    assert not faults
    assert table["step"]["lr"] == lr


def test_in_one_layer_knob_and_table_for_one_setting_contradict_each_other(registry: Registry) -> None:
    _, faults = composed(registry, {"use": "plain", "lr": 0.1, "step": {"lr": 0.2}})
    assert [fault.path for fault in faults] == ["method.lr"]
    assert "method.step.lr" in faults[0].message


def test_in_one_layer_a_table_is_more_specific_than_a_knob_for_several_places(registry: Registry) -> None:
    table, faults = composed(registry, {"use": "fake", "lr": 0.1, "step": {"lr": 0.2}})
    assert not faults
    assert (table["step"]["lr"], table["fallback"]["lr"]) == (0.2, 0.1)


def test_settings_under_a_structure_that_a_knob_chose_stay(registry: Registry) -> None:
    table, faults = composed(
        registry, {"use": "fake", "structure": "shear", "preconditioner": {"estimator": {"A": {"size": 5}}}}
    )
    assert not faults
    assert table["preconditioner"]["estimator"]["A"] == {"use": "shear", "size": 5}


def test_damping_is_a_knob_for_numbers_and_a_place_for_parts(registry: Registry) -> None:
    as_knob, _ = composed(registry, {"use": "fake", "damping": 0.5})
    as_place, _ = composed(registry, {"use": "fake", "damping": {"use": "levenberg-marquardt"}})
    as_name, _ = composed(registry, {"use": "fake", "damping": "levenberg-marquardt"})
    deeper, _ = composed(registry, {"use": "fake", "damping": {"value": 0.5}})
    assert as_knob["damping"] == deeper["damping"] == {"use": "constant", "value": 0.5}
    assert as_place["damping"] == {"use": "levenberg-marquardt"}
    assert as_name["damping"] == {"use": "levenberg-marquardt"}


def test_a_schedule_turns_a_knob_that_is_called_like_a_place(registry: Registry) -> None:
    schedule = {"use": "cosine", "peak": 1.0, "steps": 3}
    method = build_method(registry, "fake", {"damping": schedule, "lr": schedule})
    assert method.damping == Constant(Cosine(peak=1.0, steps=3))
    assert method.step == Rate(Cosine(peak=1.0, steps=3))


def test_a_part_given_built_stands_at_its_place_even_if_a_knob_has_that_name(registry: Registry) -> None:
    part = LevenbergMarquardt(initial=2.0)
    assert build_method(registry, "fake", {"damping": part}).damping == part
    schedule = Cosine(peak=1.0, steps=3)
    assert build_method(registry, "fake", {"damping": schedule}).damping == Constant(schedule)


def test_a_knob_passes_over_a_place_that_is_emptied_if_it_means_others_too(registry: Registry) -> None:
    method = build_method(registry, "fake", {"lr": 0.5, "fallback": "none"})
    assert method.fallback is None
    assert method.step == Rate(0.5)


def test_a_fallback_is_a_method_with_knobs_of_its_own(registry: Registry) -> None:
    method = build_method(registry, "plain", {"fallback": {"use": "fake", "momentum": 0.3}})
    assert method.fallback is not None
    assert method.fallback.on_update[1].beta == 0.3  # type: ignore[attr-defined]
    assert method.fallback.fallback is not None


def test_a_knob_that_is_none_keeps_its_default(registry: Registry) -> None:
    assert build_method(registry, "fake", {"lr": None, "structure": None}) == build_method(
        registry, "fake", {}
    )


def test_settings_reach_any_place_by_its_path(registry: Registry) -> None:
    method = build_method(
        registry,
        "fake",
        {},
        {
            "preconditioner.inverse": "eigen",
            "on_update.momentum.nesterov": True,
            "preconditioner.estimator.A": {"use": "diagonal"},
        },
    )
    assert type(method.preconditioner.inverse).__name__ == "Eigen"  # type: ignore[attr-defined]
    assert method.on_update[1].nesterov is True  # type: ignore[attr-defined]


def test_every_fault_of_knobs_and_settings_is_told_at_once(registry: Registry) -> None:
    with pytest.raises(ConfigError) as caught:
        build_method(registry, "fake", {"momentm": 1, "decay": "x"}, {"preconditioner.inverse": "eigne"})
    assert [f.path for f in caught.value.faults] == ["momentm", "decay", "preconditioner.inverse"]


def test_a_method_may_be_composed_in_place(registry: Registry) -> None:
    data = {"preconditioner": "identity", "damping": "constant", "step": {"use": "rate", "lr": 0.1}}
    table, faults = composed(registry, data)
    assert not faults
    assert table == data
