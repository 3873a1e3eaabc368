"""Names of coordinates."""

from __future__ import annotations


def coordinates(dimension: int) -> tuple[str, ...]:
    """x, y, z up to three coordinates, else x1, x2, …"""
    return ("x", "y", "z")[:dimension] if dimension <= 3 else tuple(f"x{k + 1}" for k in range(dimension))
