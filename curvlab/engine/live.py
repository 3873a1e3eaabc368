"""What ``param_groups`` shows of a method: the numbers that may change while it trains.

    lr            the step rule's rate
    weight_decay  where the method has that knob
    momentum      likewise
    eps           likewise
    damping       likewise, where λ is constant or scheduled: one that adapts is the method's own
    betas         a pair, where the method has the knobs beta1 and beta2, as torch's Adam shows them

Every function here is pure.  States stay valid, since only numbers change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

from torch import Tensor

from curvlab.engine.method import Method
from curvlab.errors import ConfigError, Fault
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.step import Damping

#: keys of torch's own optimizers that users set in groups
WELL_KNOWN = (
    "weight_decay",
    "momentum",
    "damping",
    "betas",
    "eps",
    "nesterov",
    "dampening",
    "maximize",
    "amsgrad",
)

#: keys that are one knob of the same name
_SINGLE = ("weight_decay", "momentum", "damping", "eps")

_FALLBACK = "fallback"


def live(method: Method) -> dict[str, Any]:
    """Every live key and its present value; of a schedule, the value at step 0."""
    found: dict[str, Any] = {"lr": method.step.rate(0)}
    for key in _SINGLE:
        if _is_live(method, key):
            found[key] = _number(method, key)
    if _is_live(method, "betas"):
        found["betas"] = (_number(method, "beta1"), _number(method, "beta2"))
    return found


def lacking(method: Method) -> tuple[str, ...]:
    """The well-known keys of torch's groups that the method does not have, to be refused by name."""
    have = live(method)
    return tuple(key for key in WELL_KNOWN if key not in have)


def with_group(method: Method, key: str, value: Any) -> Method:
    """The method with a group's value, at every place of the knob, those of the fallback included.

    Raises ``ConfigError`` for a key that is not live, for what is no finite number, and for a value
    that a part refuses (a momentum of 1).  Costs microseconds.
    """
    for knob, number in _knobs(method, key, value).items():
        method = method.turned(knob, number)
    return method


def split_with_group(
    method: Method, fallback: Method | None, key: str, value: Any
) -> tuple[Method, Method | None]:
    """``with_group`` where the fallback at work is not ``method.fallback``, but settled on its blocks.

    ``method`` is the whole method, or the same settled on its own blocks; ``fallback`` gets the
    values at the knob's places.  Raises like ``with_group``.
    """
    held = with_group(method if fallback is None else replace(method, fallback=fallback), key, value)
    return held, None if fallback is None else held.fallback


def _knobs(method: Method, key: str, value: Any) -> Mapping[str, float]:
    """The knobs that a key turns, and their numbers."""
    if key == "lr":
        if not _turns(method, "lr"):
            what = "this method has no knob lr, because its parts were written out in the configuration"
            raise ConfigError(Fault(what, path="lr", hint="set the lr of its step rule"))
        return {"lr": _finite(key, value)}
    if not _is_live(method, key):
        shown = ", ".join(live(method))
        hint = f"Remove it. Parameter groups of this method may set {shown}."
        if key == "damping" and "damping" in method.knobs:
            hint = f"Remove it: {type(method.damping).__name__} adapts λ itself."
        raise ConfigError(Fault(f"{key} is not a setting of this method's parameter groups", key, hint=hint))
    if key != "betas":
        return {key: _finite(key, value)}
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ConfigError(
            Fault(f"betas = {value!r} of a parameter group must be a pair of numbers", path="betas")
        )
    return {"beta1": _finite("betas[0]", value[0]), "beta2": _finite("betas[1]", value[1])}


def _is_live(method: Method, key: str) -> bool:
    """Whether a key other than the rate is live."""
    if key == "betas":
        return _turns(method, "beta1") and _turns(method, "beta2")
    return key in _SINGLE and _turns(method, key)


def _turns(method: Method, knob: str) -> bool:
    """Whether a knob sets a number, or a schedule, of the method itself that nothing else changes."""
    places = method.knobs.get(knob)
    if not places or places[0][0] == _FALLBACK:
        return False
    if knob == "damping" and type(method.damping).learn is not Damping.learn:
        return False
    value = method.value(knob)
    return isinstance(value, (int, float, Schedule)) and not isinstance(value, bool)


def _number(method: Method, knob: str) -> float:
    return at_step(method.value(knob), 0)


def _finite(key: str, value: Any) -> float:
    """A number, or a tensor that holds one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(Fault(f"{key} = {value!r} of a parameter group must be a finite number", path=key))
    return float(value)
