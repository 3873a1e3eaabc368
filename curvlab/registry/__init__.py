"""Names: which parts, methods and plugins exist, and where each comes from.  Never imports torch."""

from curvlab.registry.hookspecs import API_VERSION, hookimpl
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
