"""``curvlab plugins new``: writes a plugin to start from, offline."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from curvlab import __version__
from curvlab.cli.options import AsJson
from curvlab.cli.output import complain, print_json, print_text
from curvlab.registry import Registry, installed
from curvlab.registry.kinds import KINDS, METHOD
from curvlab.registry.loader import candidates
from curvlab.scaffold.names import Names
from curvlab.scaffold.project import project, write


def new(
    kind: Annotated[str, typer.Argument(help=f"The kind of part: {', '.join(KINDS)}.", show_default=False)],
    name: Annotated[
        str,
        typer.Argument(help="The name of the part in configurations, such as my-arrow.", show_default=False),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir", metavar="D", help="The folder to write, new or empty.  [default: ./curvlab-NAME]"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a new plugin: an installable package, a working example of its kind, and its tests."""
    made = project(kind, name, version=__version__, year=datetime.date.today().year)
    where = Path(made.names.distribution) if folder is None else folder
    paths = write(made, where)
    for warning in _clashes(installed(), kind, made.names):
        complain(f"warning: {warning}")
    if as_json:
        names = {"name": name, "distribution": made.names.distribution, "package": made.names.package}
        written = {"folder": str(where), "edit": str(where / made.edit), "files": [str(p) for p in paths]}
        print_json({"kind": kind, **names, **written})
        return
    steps = (
        f"pip install -e {where}",
        f"curvlab plugins check {name}",
        f"curvlab train {where / 'example.toml'}",
    )
    lines = [
        f"{len(paths)} files in {where}; {made.edit} is the one to edit.  README.md says where else"
        " the example is described.  Then:",
        *steps,
    ]
    print_text("\n  ".join(lines))


def _clashes(registry: Registry, kind: str, names: Names) -> list[str]:
    """What will be ambiguous, or replaced, once the new plugin is installed."""
    entries = registry.method_entries() if kind == METHOD else registry.parts(kind)
    owners = {e.distribution for e in entries if e.name == names.name} - {names.distribution}
    found = [
        f'{kind} "{names.name}" is also registered by {owner}: configurations will have to write '
        f'"{names.distribution}:{names.name}"'
        for owner in sorted(owners)
    ]
    if any(c.distribution == names.distribution for c in candidates()):
        found.append(f"a distribution {names.distribution} is installed: this one would replace it")
    return found
