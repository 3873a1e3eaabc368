"""The layer readers that are registered, in the order in which they are tried."""

from __future__ import annotations

from typing import cast

from curvlab.protocols.reader import LayerReader
from curvlab.registry.identity import PROJECT
from curvlab.registry.imports import part_class
from curvlab.registry.registry import Registry


def layer_readers(registry: Registry) -> tuple[LayerReader, ...]:
    """Those of plugins first, since they may know more of a layer than the core does.

    Raises ``PluginError`` for a reader that cannot be made.
    """
    entries = sorted(registry.parts("layer"), key=lambda entry: entry.distribution == PROJECT)
    return tuple(cast(LayerReader, part_class(entry)(**entry.preset)) for entry in entries)
