"""Settings for trying a part when none are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from curvlab.config.schema import Setting, element, is_mapping, kind_of, members, settings_of
from curvlab.registry.imports import part_class
from curvlab.registry.records import PartEntry

#: kind -> the part of core that stands where a part of that kind must be given
STAND_INS: Mapping[str, str] = {
    "structure": "dense",
    "estimator": "gauss-newton",
    "preconditioner": "identity",
    "inverse": "cholesky",
    "krylov": "cg",
    "damping": "constant",
    "step": "armijo",
    "transform": "momentum",
    "sampler": "uniform",
    "loss": "cross-entropy",
}

#: a rate, a norm, a momentum; a number of steps, a width
FRACTION, COUNT = 0.1, 10


def example_settings(entry: PartEntry, given: Mapping[str, Any]) -> dict[str, Any]:
    """A value for each setting without a default that is not given, where one can be guessed."""
    found: dict[str, Any] = {}
    for setting in settings_of(part_class(entry)).values():
        if setting.required and setting.name not in {*given, *entry.preset}:
            value = _value(setting)
            if value is not None:
                found[setting.name] = value
    return found


def _value(setting: Setting) -> Any:
    for option in members(setting.annotation):
        kind = str(kind_of(option))
        if kind in STAND_INS:
            return STAND_INS[kind]
        kind = str(kind_of(element(option)))
        if kind in STAND_INS:
            return {"*": STAND_INS[kind]} if is_mapping(option) else [STAND_INS[kind]]
        number = get_args(option)[0] if get_origin(option) is Annotated else option
        if number is float:
            return FRACTION
        if number is int:
            return COUNT
        if get_origin(option) is Literal:
            return get_args(option)[0]
    return None
