"""One plugin of every kind, written once, and a working folder in which they are installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scaffold.generated import FIRST_PARTY, ROOT, Generated, every_kind, write_metadata


@pytest.fixture(scope="session")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Generated]:
    """By kind."""
    return {p.made.kind: p for p in every_kind(tmp_path_factory.mktemp("projects"))}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, projects: dict[str, Generated]) -> Path:
    """Metadata of all of them, and of the repository's plugins, installed or not."""
    folder = tmp_path_factory.mktemp("site")
    for made in (p.made.names for p in projects.values()):
        write_metadata(folder, made.distribution, made.name, made.package)
    for name in FIRST_PARTY:
        write_metadata(folder, f"curvlab-{name}", name, f"curvlab_{name}")
    return folder


@pytest.fixture(scope="session")
def packages(projects: dict[str, Generated]) -> list[str]:
    """The folders in which their packages and those of the repository lie."""
    ours = [str(ROOT), *(str(ROOT / "plugins" / name) for name in FIRST_PARTY)]
    return [*(str(p.folder) for p in projects.values()), *ours]


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packages: list[str]) -> Path:
    """A working folder where every package can be imported, and the repository's plugins are installed."""
    for folder in reversed(packages):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("CURVLAB_PLUGINS", ",".join(FIRST_PARTY))
    monkeypatch.setenv("CURVLAB_DISABLE_PLUGINS", "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def installed(
    monkeypatch: pytest.MonkeyPatch, uninstalled: Path, site: Path, projects: dict[str, Generated]
) -> Path:
    """The same with the new plugins installed too."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("CURVLAB_PLUGINS", ",".join([*FIRST_PARTY, *(p.name for p in projects.values())]))
    return uninstalled


@pytest.fixture
def environment(site: Path, packages: list[str], projects: dict[str, Generated]) -> dict[str, str]:
    """The environment of a process in which all of them are installed."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), *packages]),
        "CURVLAB_PLUGINS": ",".join([*FIRST_PARTY, *(p.name for p in projects.values())]),
    }
