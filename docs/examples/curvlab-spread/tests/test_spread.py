"""The conformance suite, and that methods of layers treat the layer."""

from __future__ import annotations

import pytest

import curvlab
from curvlab.testing.conformance import LayerConformance
from curvlab_spread._example import Spreading
from curvlab_spread.spread import Spread


class TestSpread(LayerConformance):
    def make(self) -> Spread:
        return Spread()


@pytest.mark.parametrize("method", ["kfac", "ekfac", "singd"])
def test_methods_of_layers_treat_it(method: str) -> None:
    (row,) = curvlab.optimizer(method, Spreading(3, 4, 2)).coverage()
    assert (row.treatment, row.reason) == (method, "")
