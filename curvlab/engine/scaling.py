"""Scales of a caller's loop: that of ``torch.amp.GradScaler``, and a rate that is zero at first."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType
from typing import Any, cast

from torch.amp import GradScaler

from curvlab.engine.method import Method
from curvlab.errors import ConfigError, Fault
from curvlab.protocols.needs import Needs

#: frames between a scaler's ``step`` and the optimizer's: wrappers of schedulers, hooks and libraries
FRAMES = 17


def unscaled_by(optimizer: Any, needs: Needs) -> tuple[float, float] | None:
    """What the gradients and the layer statistics still carry of a scaler's factor; ``None``: skip the step.

    ``GradScaler.step`` leaves ``found_inf`` on the optimizer, and ``grad_scale`` unless the caller has
    unscaled the gradients by ``unscale_``, as clipping asks for.  The layer statistics carry the scale in any
    case; it is then that of the scaler whose ``step`` is under way.  Raises ``ConfigError`` if statistics are
    needed and no such scaler is found.
    """
    found_inf, grad_scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if found_inf is not None and float(found_inf) > 0:
        return None
    if grad_scale is not None:
        return float(grad_scale), float(grad_scale)
    if found_inf is None or not needs.layers:
        return 1.0, 1.0
    scaler = _scaler_under_way(sys._getframe(1))
    if scaler is None:
        raise ConfigError(
            Fault(
                "a scaler other than torch.amp.GradScaler unscaled the gradients before step();"
                " the scale of the layer statistics is not known",
                hint='let the scaler\'s step() unscale; to clip, set on_gradient = [{ use = "clip" }]',
            )
        )
    return 1.0, scaler.get_scale()


def _scaler_under_way(frame: FrameType | None) -> GradScaler | None:
    """The scaler whose ``step`` is running: once gradients are unscaled, only it has the scale."""
    for _ in range(FRAMES):
        if frame is None:
            return None
        caller = frame.f_locals.get("self")
        if isinstance(caller, GradScaler):
            return caller
        frame = frame.f_back
    return None


def startable(method: Method) -> Method:
    """A method whose rate is the number 0, with 1 in its place: a group's ``lr`` is then the rate itself.

    A schedule is left as it is.  A fallback whose rate is 0 too, as where one knob sets both, starts alike.
    """
    if method.step.rate(0) != 0 or getattr(method.step, "lr", None) != 0:
        return method
    fallback = None if method.fallback is None else startable(method.fallback)
    return replace(method, step=replace(cast(Any, method.step), lr=1.0), fallback=fallback)
