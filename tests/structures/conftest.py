"""For the laws about structures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from curvlab.protocols.structure import NaiveFallback


@pytest.fixture(autouse=True)
def _dense_detours_are_allowed() -> Iterator[None]:
    """A family may still be slow; that it must be right is what most laws say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaiveFallback)
        yield
