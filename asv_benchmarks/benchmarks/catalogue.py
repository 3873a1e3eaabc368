"""What there is to measure: methods, structures and solvers, from the registry of the working tree.

Parameters of a benchmark are passed to an old commit by their place in a list, so that list cannot come from
what that commit has installed.  A process of its own registers the working tree's core and plugins, whatever
is installed; a new method or structure is measured from the commit on that has it.

    python asv_benchmarks/benchmarks/catalogue.py     prints it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: steps that are measured of a method that refreshes nothing: of solvers none is like the other
FEW = 2


@dataclass(frozen=True)
class Catalogue:
    """``methods``: by name, how many steps make a cycle of its refreshes, or ``FEW``."""

    methods: dict[str, int]
    structures: list[str]
    solvers: list[str]


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """Asked once per process; its children inherit the answer."""
    folders = [ROOT, *(p.parent for p in sorted(ROOT.glob("plugins/*/pyproject.toml")))]
    asked = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode:
        raise RuntimeError(f"the working tree's registry cannot be read:\n{asked.stderr}")
    return Catalogue(**json.loads(asked.stdout))


def read() -> Catalogue:
    """The registry, without looking at what is installed."""
    from importlib import import_module

    import tomli

    from curvlab import default_plugin
    from curvlab.registry.registry import Registry

    registry = Registry("curvlab")
    default_plugin.curvlab_register(registry)
    for path in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        about = tomli.loads(path.read_text(encoding="utf-8"))["project"]
        for module in about["entry-points"]["curvlab"].values():
            mine = Registry(about["name"])
            import_module(module).curvlab_register(mine)
            registry.absorb(mine)
    return Catalogue(
        {entry.name: _cycle(entry.document) for entry in registry.method_entries()},
        [entry.name for entry in registry.parts("structure")],
        [entry.name for entry in registry.parts("krylov")],
    )


def _cycle(document: object) -> int:
    """The default of the knob ``refresh``, which is written where the knob's first path points."""
    assert isinstance(document, dict)
    knob = document.get("knobs", {}).get("refresh")
    if knob is None:
        return FEW
    value = document["method"]
    for key in knob["paths"][0].split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return max(FEW, value) if isinstance(value, int) else FEW


if __name__ == "__main__":
    print(json.dumps(asdict(read())))
