"""Numbers with their units as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", "k", "M", "G", "T", "P")

#: what a second is divided into
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def in_words(value: float, unit: str) -> str:
    """``1.42 MiB``, ``3.2 ms``, ``18.7 Mflops``, ``41 steps``."""
    if unit == "bytes":
        return _scaled(value, 1024, _BINARY)
    if unit == "seconds":
        return _time(value)
    if abs(value) >= 1e4:
        return _scaled(value, 1000, _DECIMAL) + unit
    return f"{value:.5g} {unit}".strip()


def ratio_in_words(ratio: float | None, interval: tuple[float, float] | None) -> str:
    """``+12 %``, ``× 2.4``; of times with the interval that the ratio lies in: ``× 2.4 (2.1 – 2.8)``."""
    if ratio is None:
        return ""
    if math.isinf(ratio):
        return "from nothing"
    bounds = f" ({interval[0]:.2f} – {interval[1]:.2f})" if interval else ""
    if ratio >= 2 or interval:
        return f"× {ratio:.3g}{bounds}"
    percent = 100 * (ratio - 1)
    if percent == 0:
        return "0 %"
    sign = "+" if percent > 0 else "−"
    return f"{sign}{abs(percent):.3g} %"


def _scaled(value: float, base: int, names: Sequence[str]) -> str:
    k = 0
    while abs(value) >= base and k < len(names) - 1:
        value /= base
        k += 1
    return f"{value:.4g} {names[k]}"


def _time(value: float) -> str:
    for size, name in _SECONDS:
        if abs(value) >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} s"
