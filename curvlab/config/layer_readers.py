"""The layer readers that are registered, in the order in which they are tried."""

from __future__ import annotations

import warnings
from typing import cast

from curvlab.errors import PluginError
from curvlab.protocols.reader import LayerReader
from curvlab.registry.identity import PROJECT
from curvlab.registry.imports import part_class
from curvlab.registry.registry import Registry


class ReaderWarning(UserWarning):
    """A registered layer reader cannot be used; layers of its kind go to the fallback."""


def layer_readers(registry: Registry) -> tuple[LayerReader, ...]:
    """Those of plugins first, since they may know more of a layer than the core does; then by name.

    A plugin's reader that cannot be made is left out with a ``ReaderWarning``.
    """
    found = []
    for entry in sorted(registry.parts("layer"), key=lambda e: (e.distribution == PROJECT, e.name)):
        try:
            found.append(cast(LayerReader, part_class(entry)(**entry.preset)))
        except PluginError as error:
            warnings.warn(f"{error}; its layers are not read", ReaderWarning, stacklevel=3)
    return tuple(found)
