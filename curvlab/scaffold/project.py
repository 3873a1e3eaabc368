"""The files of a new plugin, as text; and writing them where nothing is yet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from curvlab.errors import UsageError
from curvlab.registry.identity import API_VERSION
from curvlab.registry.kinds import KINDS, LAYER, METHOD
from curvlab.scaffold.names import Names, kind_among, names_of

_SUFFIX = ".tmpl"
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Project:
    """A plugin that could be written: its kind, its names, and its files by path."""

    kind: str
    names: Names
    files: Mapping[str, str]
    edit: str  #: the file that its author edits


def project(kind: str, name: str, *, version: str, year: int) -> Project:
    """The project of a kind and a name, for this version of curvlab; raises ``UsageError``."""
    kind_among(kind, KINDS)
    templates = dict(_templates("common")) | dict(_templates(kind))
    names = names_of(name, kind, _reserved(templates))
    values = _values(kind, names, version, year)
    values |= _about(Template(templates.pop("about.txt")).substitute(values))
    values["Summary"] = values["summary"][0].upper() + values["summary"][1:]
    values["summary"] = f"example: {values['summary']}"  # listings show what its author has not replaced
    places = {"PACKAGE": names.package, "MODULE": names.module, "NAME": names.name, "TESTS": "tests"}
    written = {}
    for path, template in templates.items():
        for word, place in places.items():
            path = path.replace(word, place)
        written[path] = Template(template).substitute(values)
    return Project(kind, names, dict(sorted(written.items())), values["edit"])


def write(made: Project, folder: Path) -> list[Path]:
    """Write every file below ``folder``; raises ``UsageError``, and writes nothing, if anything is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} exists and is not an empty folder. Nothing was written.\n"
            "  Choose another with --dir D."
        )
    paths = []
    for name, text in made.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def _templates(folder: str) -> Iterator[tuple[str, str]]:
    """Path within the project, and text, of every template of a folder."""
    root = _TEMPLATES / folder
    for file in root.rglob(f"*{_SUFFIX}"):
        yield file.relative_to(root).as_posix().removesuffix(_SUFFIX), file.read_text(encoding="utf-8")


def _reserved(templates: Mapping[str, str]) -> frozenset[str]:
    """Class names that would shadow a name of the Python templates, alone or with a suffix added there."""
    code = "\n".join(text for path, text in templates.items() if path.endswith(".py"))
    words = set(re.findall(r"(?<![\w{}])[A-Z]\w*", code))
    suffixes = set(re.findall(r"\$\{Class\}(\w+)", code))
    stems = {word.removesuffix(suffix) for word in words for suffix in suffixes if word.endswith(suffix)}
    return frozenset(words | stems)


def _values(kind: str, names: Names, version: str, year: int) -> dict[str, str]:
    major, minor, *_ = version.split(".")
    part = f"{names.package}.{names.module}:{names.class_name}"
    by_path = f'`use = "{part}"` works without installing it, with this folder on `PYTHONPATH`.'
    by_kind = "No configuration names it: while it is installed, every method of layers reads by it."
    by_hand = "A configuration may also write such a composition out under `[method]`, without a package."
    file = f"methods/{names.name}.toml" if kind == METHOD else f"{names.module}.py"
    return {
        "kind": kind,
        "a_kind": f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}",
        "listing": "curvlab methods" if kind == METHOD else f"curvlab parts {kind}",
        "uninstalled": {METHOD: by_hand, LAYER: by_kind}.get(kind, by_path),
        "settings": "" if kind == LAYER else "; its settings are what a configuration may set",
        "described": f"`summary` in `{names.package}/{file if kind == METHOD else '__init__.py'}`",
        "name": names.name,
        "Class": names.class_name,
        "module": names.module,
        "package": names.package,
        "distribution": names.distribution,
        "curvlab": f"curvlab>={major}.{minor},<{major}.{int(minor) + 1}",
        "api_version": API_VERSION,
        "year": str(year),
        "edit": f"{names.package}/{file}",
    }


def _about(text: str) -> dict[str, str]:
    """Lines ``key: value``, a blank line, and what an author of this kind owes."""
    head, _, owes = text.partition("\n\n")
    return {**dict(line.split(": ", 1) for line in head.splitlines()), "owes": owes.strip()}
