"""Range checks of tasks' settings, in the words of the error a user reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curvlab.errors import ConfigError, Fault


def check(*faults: Sequence[Fault]) -> None:
    """Raise one ``ConfigError`` with every fault that the checks found, if there is any."""
    found = [fault for group in faults for fault in group]
    if found:
        raise ConfigError(*found)


def at_least(least: float, **values: float) -> list[Fault]:
    """A fault for each value that is less than ``least`` or not finite."""
    wrong = {n: v for n, v in values.items() if not least <= v < float("inf")}
    return _faults(wrong, f"must be at least {least}")


def share(**values: float) -> list[Fault]:
    """A fault for each value that is not a share of something: more than 0 and less than 1."""
    wrong = {n: v for n, v in values.items() if not 0 < v < 1}
    return _faults(wrong, "must be above 0 and below 1")


def widths(count: int | None = None, **values: Sequence[int]) -> list[Fault]:
    """A fault for each list of layer widths with an entry less than 1, or not of ``count`` entries."""
    wrong = {n: list(v) for n, v in values.items() if min(v, default=1) < 1 or count not in (None, len(v))}
    return _faults(wrong, f"must hold {'' if count is None else f'{count} '}widths of at least 1")


def divides(whole: int, what: str, **values: int) -> list[Fault]:
    """A fault for each value that is no positive divisor of ``whole``, the size of ``what``."""
    wrong = {n: v for n, v in values.items() if v < 1 or whole % v}
    return _faults(wrong, f"must be a divisor of {what}, {whole}")


def _faults(wrong: Mapping[str, object], expected: str) -> list[Fault]:
    return [Fault(f"{n} = {v!r} {expected}", path=n) for n, v in wrong.items()]
