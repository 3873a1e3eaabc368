"""What is installed: distributions, versions, pins, and what lies in the wheels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import curvlab

pytestmark = pytest.mark.source_tree

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(p.parent.name for p in ROOT.glob("plugins/*/pyproject.toml"))
PROJECTS = {"curvlab": ROOT, **{f"curvlab-{name}": ROOT / "plugins" / name for name in PLUGINS}}

USER_COMMAND = (
    "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
    " && .venv/bin/curvlab train examples/quickstart.toml"
)
TEST_COMMAND = (
    "python3 -m venv .venv && .venv/bin/pip install -r requirements-dev.txt && .venv/bin/nox -s tests"
)


def project(name: str) -> dict[str, Any]:
    return tomli.loads((PROJECTS[name] / "pyproject.toml").read_text(encoding="utf-8"))


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


@lru_cache(maxsize=1)
def constraints() -> dict[str, Requirement]:
    """What is pinned for this Python on this platform, by canonical name."""
    found: dict[str, Requirement] = {}
    for line in lines("constraints.txt"):
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate():
            assert canonicalize_name(pin.name) not in found, f"{pin.name} is pinned twice"
            found[canonicalize_name(pin.name)] = pin
    return found


def wanted() -> list[Requirement]:
    """The third-party requirements of the core with its extras, and of the plugins."""
    about = project("curvlab")["project"]
    extras = [r for extra in about["optional-dependencies"].values() for r in extra]
    plugins = [r for name in PROJECTS for r in project(name)["project"]["dependencies"]]
    found = [Requirement(r) for r in (*about["dependencies"], *extras, *plugins)]
    return [r for r in found if r.name not in PROJECTS and (r.marker is None or r.marker.evaluate())]


def closure() -> set[str]:
    """Every installed distribution that those requirements pull in, by canonical name."""
    waiting, seen = [(r.name, frozenset(r.extras)) for r in wanted()], set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for text in metadata.requires(name) or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in ("", *extras)):
                waiting.append((inner.name, frozenset(inner.extras)))
    return {canonicalize_name(name) for name, _ in seen}


def test_there_is_a_plugin() -> None:
    found = {
        "adas", "compress", "firstorder", "graphs", "hessianfree", "huggingface", "kbfgs", "kfac", "lbfgs",
        "lowrank", "operators", "pinn", "precision", "samplespace", "shampoo", "singd", "speech",
        "structures", "trackers",
    }  # fmt: skip
    assert found <= set(PLUGINS)


@pytest.mark.parametrize("name", PROJECTS)
def test_all_distributions_have_one_version(name: str) -> None:
    about = project(name)["project"]
    if name == "curvlab":
        assert about["dynamic"] == ["version"]  # read from curvlab/__init__.py
    else:
        assert about["version"] == curvlab.__version__
        (own,) = (Requirement(r) for r in about["dependencies"] if Requirement(r).name == "curvlab")
        major, minor, *_ = curvlab.__version__.split(".")
        assert own.specifier == SpecifierSet(f">={major}.{minor},<{major}.{int(minor) + 1}")


@pytest.mark.parametrize("name", PROJECTS)
def test_every_distribution_says_the_same_of_itself(name: str) -> None:
    settings = project(name)
    about = settings["project"]
    assert about["name"] == name
    assert about["license"] == "MIT"
    assert about["requires-python"] == ">=3.10"
    assert settings["build-system"] == project("curvlab")["build-system"]
    folder = PROJECTS[name]
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (folder / "README.md").is_file()
    assert (folder / name.replace("-", "_") / "py.typed").is_file()


@pytest.mark.parametrize("name", [n for n in PROJECTS if n != "curvlab"])
def test_a_plugin_is_found_by_its_entry_point(name: str) -> None:
    points = project(name)["project"]["entry-points"]["curvlab"]
    assert points == {name.removeprefix("curvlab-"): name.replace("-", "_")}


def test_requirement_files_install_every_plugin() -> None:
    folders = [f"./plugins/{name}" for name in PLUGINS]
    assert lines("requirements.txt") == ["-c constraints.txt", ".[digits]", *folders]
    assert lines("requirements-dev.txt") == [
        "-c constraints.txt",
        "-e .[digits,dev,docs]",
        *(f"-e {folder}" for folder in folders),
    ]


def test_every_pin_is_exact_and_torch_is_the_promised_one() -> None:
    for line in lines("constraints.txt"):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [a-z_]+ (==|<|>=) \"[a-z0-9.]+\")?", line), line
    assert str(constraints()["torch"].specifier) == "==2.13.0"


def test_pins_lie_within_the_ranges() -> None:
    for requirement in wanted():
        pin = constraints()[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert requirement.specifier.contains(exact.version), f"{pin} is outside {requirement}"


def test_the_whole_tree_is_pinned_and_nothing_else() -> None:
    """Torch's own CUDA libraries are left out: torch pins them, and its CPU build has none.

    The pins are those of Python 3.11; another version may need fewer: 3.10 has no tools of the site.
    """
    pulled_in = {name for name in closure() if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert pulled_in <= set(constraints())
    assert sys.version_info[:2] != (3, 11) or pulled_in == set(constraints())


def test_the_lowest_pins_are_the_lower_bounds_and_what_those_ask_for() -> None:
    """``nox -s wheels -- --torch …`` tests what is promised."""
    about = project("curvlab")["project"]
    promised = {}
    for text in (*about["dependencies"], *about["optional-dependencies"]["digits"]):
        requirement = Requirement(text)
        (bound,) = (s.version for s in requirement.specifier if s.operator == ">=")
        promised[requirement.name] = Version(bound)
    lowest = {}
    for line in lines("constraints-lowest.txt"):
        pin, _, reason = line.partition("  # ")
        name, _, version = pin.partition("==")
        assert name in promised or reason, f"no reason for {pin}"
        lowest[name] = Version(version)
    assert {name: lowest[name] for name in promised} == promised
    assert all(lowest[name] <= Version(str(constraints()[name].specifier)[2:]) for name in lowest)


def test_every_minimum_says_why() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    about = project("curvlab")["project"]
    for requirement in (*about["dependencies"], *about["optional-dependencies"]["digits"]):
        (line,) = (line for line in text.splitlines() if f'"{requirement}"' in line)
        assert re.search(r"# \S+", line), f"no reason for {requirement}"


def test_the_two_commands_are_in_the_readme_and_ci_runs_the_second() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert USER_COMMAND in readme
    assert TEST_COMMAND in readme
    script = ROOT / ".ci" / "run"
    assert TEST_COMMAND in script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)


@lru_cache(maxsize=4)
def wheel(name: str, folder: Path) -> Path:
    """The wheel of a distribution, built without a second environment."""
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(folder),
            str(PROJECTS[name]),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob(f"{name.replace('-', '_')}-*.whl")
    return found


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_is_pure_and_whole(name: str, wheels: Path) -> None:
    package = name.replace("-", "_")
    path = wheel(name, wheels)
    assert path.name == f"{package}-{curvlab.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        about = _metadata(archive)
    source = PROJECTS[name] / package
    files = {
        str(f.relative_to(source.parent))
        for f in source.rglob("*")
        if f.suffix in (".py", ".tmpl", ".toml", ".typed", ".js", ".css", ".html", ".txt")
    }
    assert f"{package}/py.typed" in files
    info = f"{package}-{curvlab.__version__}.dist-info"
    assert {n for n in names if not n.startswith(f"{info}/")} >= files
    assert {n.split("/")[0] for n in names} == {package, info}
    assert f"{info}/licenses/LICENSE" in names
    assert not [n for n in names if n.endswith((".pyc", ".so")) or "/tests/" in n]
    assert about["License-Expression"] == "MIT"
    assert about["Requires-Python"] == ">=3.10"


@pytest.mark.parametrize(
    "name", [n for n in PROJECTS if (PROJECTS[n] / n.replace("-", "_") / "methods").is_dir()]
)
def test_a_plugins_wheel_brings_its_methods(name: str, wheels: Path) -> None:
    package = name.replace("-", "_")
    with zipfile.ZipFile(wheel(name, wheels)) as archive:
        methods = [n for n in archive.namelist() if re.fullmatch(rf"{package}/methods/[a-z0-9-]+\.toml", n)]
    assert methods


def _metadata(archive: zipfile.ZipFile) -> Message:
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return Parser().parsestr(archive.read(name).decode("utf-8"))
