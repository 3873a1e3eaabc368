"""Range checks of settings, in the words of the error a user reads."""

from __future__ import annotations

import math

from curvlab.errors import ConfigError, Fault


def check_solver(
    max_iterations: int, progress: float, window: int, tolerance: float, grid: float, kept: int
) -> None:
    """Raise ``ConfigError``, with every setting that is out of range."""
    faults = []
    for name, value, least in (
        ("max_iterations", max_iterations, 1),
        ("window", window, 1),
        ("kept", kept, 0),
    ):
        if value < least:
            faults.append(Fault(f"{name} = {value!r} must be at least {least}", path=name))
    for name, number in (("progress", progress), ("tolerance", tolerance)):
        if not 0 <= number < 1:
            faults.append(Fault(f"{name} = {number!r} must be ≥ 0 and < 1", path=name))
    if grid and not grid > 1:
        faults.append(Fault(f"grid = {grid!r} must be above 1, or 0 for none", path="grid"))
    if faults:
        raise ConfigError(*faults)


def at_least(name: str, value: float, least: float) -> None:
    """Raise ``ConfigError`` unless ``least`` ≤ ``value`` < ∞."""
    if not least <= value < math.inf:
        raise ConfigError(Fault(f"{name} = {value!r} must be at least {least}", path=name))


def positive(name: str, value: float, *, most: float = math.inf) -> None:
    """Raise ``ConfigError`` unless 0 < ``value`` ≤ ``most``."""
    if not 0 < value <= most:
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise ConfigError(Fault(f"{name} = {value!r} must be positive{upper}", path=name))
