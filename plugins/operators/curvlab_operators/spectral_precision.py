"""Spectral precision: in which dtype a spectral convolution keeps Fourier coefficients and mixes channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

#: what is in float16: nothing; coefficients and their products; these and the transforms' results
SpectralPrecision = Literal["full", "mixed", "half"]

_OVERRIDE: ContextVar[SpectralPrecision | None] = ContextVar("spectral_precision", default=None)


@contextmanager
def spectral_precision(precision: SpectralPrecision) -> Iterator[None]:
    """Inside, spectral convolutions compute in this precision, whatever their own setting is."""
    token = _OVERRIDE.set(precision)
    try:
        yield
    finally:
        _OVERRIDE.reset(token)


def in_force(own: SpectralPrecision) -> SpectralPrecision:
    """The precision of a layer whose setting is ``own``: that of the innermost context, if there is one."""
    override = _OVERRIDE.get()
    return own if override is None else override
