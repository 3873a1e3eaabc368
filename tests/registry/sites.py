"""Fake distributions: a folder with modules and metadata, as pip would leave it in site-packages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: a plugin's module, with room for what it registers and for more hooks
MODULE = """
from curvlab import hookimpl

api_version = "1.0"


@hookimpl
def curvlab_register(registry):
    {registers}

{more}
"""

#: what a plugin in order registers
ADDS = 'registry.add("step", "{name}", "curvlab.parts.steps:Rate", summary="a step of {name}")'


def module(registers: str = "pass", more: str = "") -> str:
    """The source of a plugin in order."""
    return MODULE.format(registers=registers, more=more)


def write_distribution(
    site: Path, name: str, modules: Mapping[str, str], plugins: Mapping[str, str], version: str = "1.0"
) -> None:
    """Write modules, by name, and a ``.dist-info`` whose entry points are ``plugins``, name to module."""
    site.mkdir(exist_ok=True)
    for stem, source in modules.items():
        (site / f"{stem}.py").write_text(source, encoding="utf-8")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{plugin} = {target}" for plugin, target in plugins.items()]
    (info / "entry_points.txt").write_text("\n".join(["[curvlab]", *lines, ""]))
