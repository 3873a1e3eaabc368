"""Names: which parts, methods and plugins exist, and where each comes from.  Never imports torch."""

from curvlab.registry.hookspecs import hookimpl
from curvlab.registry.identity import API_VERSION
from curvlab.registry.loader import discover, installed
from curvlab.registry.records import MethodEntry, PartEntry, PluginRecord
from curvlab.registry.registry import Registry

__all__ = [
    "API_VERSION",
    "MethodEntry",
    "PartEntry",
    "PluginRecord",
    "Registry",
    "discover",
    "hookimpl",
    "installed",
]
