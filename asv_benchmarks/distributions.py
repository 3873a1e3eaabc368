"""Builds, installs and uninstalls a commit's distributions for asv: the core and every plugin it has.

    python distributions.py build SOURCE INTO      wheels of SOURCE and of its plugins/*
    python distributions.py install FROM           what lies in INTO
    python distributions.py uninstall              whatever of ours is installed

Without dependencies, which the environment has at exact versions, and without an environment of their own to
build in.  asv keeps one wheel per commit, so the plugins' wheels lie in a folder beside the core's.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

#: below the folder that asv keeps of a build
PLUGINS = "plugins"


def pip(*arguments: str) -> None:
    """This interpreter's."""
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True)


def build(source: Path, into: Path) -> None:
    """All wheels of a checked-out commit."""
    make = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    pip(*make, str(into), str(source))
    plugins = sorted(str(path.parent) for path in source.glob("plugins/*/pyproject.toml"))
    if plugins:
        pip(*make, str(into / PLUGINS), *plugins)


def install(made: Path) -> None:
    """All wheels of a build."""
    wheels = sorted(str(path) for path in made.rglob("*.whl"))
    pip("install", "--quiet", "--no-deps", "--force-reinstall", *wheels)


def uninstall() -> None:
    """Ours, those included that another commit had."""
    names = {str(d.metadata["Name"]) for d in metadata.distributions()}
    ours = sorted(n for n in names if n == "curvlab" or n.startswith("curvlab-"))
    if ours:
        pip("uninstall", "--quiet", "--yes", *ours)


if __name__ == "__main__":
    command, *folders = sys.argv[1:]
    {"build": build, "install": install, "uninstall": uninstall}[command](*map(Path, folders))
