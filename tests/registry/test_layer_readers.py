"""Layer readers of plugins: tried before the core's; one that cannot be made harms nothing."""

from __future__ import annotations

import pytest

from curvlab.config.layer_readers import ReaderWarning, layer_readers
from curvlab.default_plugin import curvlab_register
from curvlab.model.readers.linear import LinearReader
from curvlab.model.readers.shipped import SHIPPED
from curvlab.registry.registry import Registry


def core() -> Registry:
    registry = Registry("curvlab", "1")
    curvlab_register(registry)
    return registry


def test_the_cores_readers_are_those_that_are_shipped() -> None:
    assert set(layer_readers(core())) == set(SHIPPED)


def test_a_plugins_reader_comes_first_and_a_broken_one_is_left_out() -> None:
    registry, plugin = core(), Registry("third-party", "1")
    plugin.add("layer", "zz", "curvlab.model.readers.linear:LinearReader", summary="x", part="weight")
    plugin.add("layer", "gone", "nowhere.at_all:Reader", summary="x")
    registry.absorb(plugin)
    with pytest.warns(ReaderWarning, match=r"third-party.*nowhere"):
        found = layer_readers(registry)
    assert found[0] == LinearReader(part="weight")
    assert set(found[1:]) == set(SHIPPED)
