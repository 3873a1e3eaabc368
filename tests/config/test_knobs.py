"""Reading method files for listings: their knobs, defaults and words."""

from __future__ import annotations

from curvlab.config.knobs import read_method
from curvlab.registry import Registry


def test_a_method_file_is_read_without_building_anything(registry: Registry) -> None:
    file = read_method(registry.method("fake"))
    assert file.knobs["lr"].written() == ("step.lr", "fallback.lr")
    assert file.knobs["lr"].help == "rate of both"
    assert file.knobs["momentum"].written() == ("on_update.momentum.beta",)
    assert file.entry.reference == "nobody, never"


def test_the_default_of_a_knob_is_what_the_composition_says(registry: Registry) -> None:
    file = read_method(registry.method("fake"))
    defaults = {name: file.default(knob) for name, knob in file.knobs.items()}
    assert defaults == {
        "lr": 0.03,
        "damping": 1e-3,
        "momentum": 0.9,
        "first": 0.0,
        "structure": None,
        "structure_in": None,
        "decay": 0.9,
        "rate2": None,
    }
