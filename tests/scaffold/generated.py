"""Plugins that ``curvlab plugins new`` wrote, found as if they were installed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from curvlab.registry.kinds import KINDS
from curvlab.scaffold.project import Project, project, write

ROOT = Path(__file__).parents[2]

#: the plugins that the examples of some kinds need
FIRST_PARTY = ("firstorder", "kfac", "singd", "structures")

#: the most lines that an author's file may have
LINES = 40


@dataclass(frozen=True)
class Generated:
    """A project in a folder."""

    made: Project
    folder: Path

    @property
    def name(self) -> str:
        return self.made.names.name

    @property
    def example(self) -> str:
        return (self.folder / "example.toml").read_text(encoding="utf-8")

    @property
    def import_string(self) -> str:
        names = self.made.names
        return f"{names.package}.{names.module}:{names.class_name}"

    def python(self, *folders: str) -> list[str]:
        return [str(f) for folder in folders for f in sorted((self.folder / folder).rglob("*.py"))]


def name_for(kind: str) -> str:
    return "my-arrow" if kind == "structure" else f"my-{kind}"


def generate(root: Path, names: Iterable[tuple[str, str]]) -> list[Generated]:
    """Write projects of these kinds and names below ``root``."""
    found = []
    for kind, name in names:
        made = project(kind, name, version="0.1.0", year=2026)
        folder = root / f"{kind}-{name}" / made.names.distribution
        write(made, folder)
        found.append(Generated(made, folder))
    return found


def every_kind(root: Path) -> list[Generated]:
    return generate(root, [(kind, name_for(kind)) for kind in KINDS])


def write_metadata(site: Path, distribution: str, plugin: str, package: str) -> None:
    """What pip would leave: enough for the entry point to be found."""
    info = site / f"{distribution.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[curvlab]\n{plugin} = {package}\n")
