"""Sessions of development.  They run in the environment nox itself runs in: see requirements-dev.txt.

nox             everything
nox -s lint     ruff: rules and format; .ci/prose.py: spelling, words to avoid, long sentences
nox -s types    mypy --strict on the core and the plugins
nox -s tests    the test suite; arguments after -- go to pytest
nox -s docs     the site, into build/docs; every warning is an error
nox -s bench-smoke   every benchmark once, here; what it measures is not kept

One lets asv make environments, and measures what is committed; arguments after -- go to `asv run`:

nox -s bench    every benchmark at HEAD; -- --bench '\\btrack_' 'main~9..main' those alone, of nine commits

Two make an environment of their own, outside the tree, and install the built wheels in it; pip fetches what
they need.  They are not among "everything":

nox -s wheels   the test suite on the wheels; -- --torch 2.6.0 takes constraints-lowest.txt
nox -s scaffolds   a new plugin of every kind: written, installed, checked, trained with

One needs a machine with a CUDA device:

nox -s gpu      every method there, in at most eight minutes; writes docs/studies/gpu.md
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nox

# a second environment would cost a second torch, and its index might offer another build
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests", "docs"]

ROOT = Path(__file__).parent
PACKAGES = [
    "curvlab",
    *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("plugins/*/curvlab_*") if p.is_dir()),
]


def python(session: nox.Session, *arguments: str, **env: str) -> None:
    """Run a module of this very interpreter: its folder need not be on the PATH."""
    session.run(sys.executable, "-m", *arguments, external=True, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Rules, format, spelling and prose."""
    python(session, "ruff", "check", ".")
    python(session, "ruff", "format", "--check", ".")
    session.run(sys.executable, ".ci/prose.py", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Static types, strictly."""
    python(session, "mypy", "--strict", *PACKAGES)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite: two processes of one thread each, since more threads would fight for the cores."""
    python(session, "pytest", "-n", "2", "--dist", "worksteal", *session.posargs, OMP_NUM_THREADS="1")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, anew and without a warning; nothing is read from a network."""
    arguments = ("-E", "-W", "--keep-going", "-b", "html", "docs", "build/docs")
    python(session, "sphinx", *arguments, OMP_NUM_THREADS="1")
    session.run(
        sys.executable, "docs/_ext/support.py", "--check", external=True, env={"OMP_NUM_THREADS": "1"}
    )


@nox.session(name="bench-smoke")
def bench_smoke(session: nox.Session) -> None:
    """Every benchmark once, in two processes; arguments after -- go to ``asv_benchmarks/smoke.py``."""
    command = [sys.executable, "asv_benchmarks/smoke.py", "--jobs", "2", *session.posargs]
    session.run(*command, external=True, env={"OMP_NUM_THREADS": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """What is committed, measured by asv in an environment of its own, made by pip alone."""
    arguments = session.posargs or ["HEAD^!"]
    named = arguments[arguments.index("--machine") :][:2] if "--machine" in arguments else []
    config = ("--config", "asv_benchmarks/asv.conf.json")
    python(session, "asv", "machine", *config, "--yes", *named)
    constraints = str(ROOT / "constraints.txt")  # what the pinned ones ask for is pinned, too
    python(session, "asv", "run", *config, *arguments, OMP_NUM_THREADS="1", PIP_CONSTRAINT=constraints)


@nox.session
def gpu(session: nox.Session) -> None:
    """Methods on a CUDA device; arguments after -- go to ``examples/studies/gpu.py``."""
    session.run(sys.executable, "examples/studies/gpu.py", *session.posargs, external=True)


@nox.session
def wheels(session: nox.Session) -> None:
    """The suite on the wheels: what is imported lies in site-packages, and the sources are not at hand."""
    pinned = pins("constraints.txt")
    known = {p["torch"].split("==")[1]: p for p in (pinned, pinned | pins("constraints-lowest.txt"))}
    arguments, version = list(session.posargs), next(iter(known))
    if "--torch" in arguments:
        at = arguments.index("--torch")
        version = "".join(arguments[at + 1 : at + 2])
        del arguments[at : at + 2]
    if version not in known:
        session.error(f"--torch {version}: constraints are known for {' and '.join(known)}")
    with clean(session, "digits,dev,docs", known[version]) as environment:
        environment.python("-c", f"import torch; assert torch.__version__.startswith({version!r})")
        tree = environment.folder / "tree"
        copy_without_packages(session, tree)
        session.chdir(tree)
        environment.python("-c", LIES_IN_SITE_PACKAGES, *(Path(p).name for p in PACKAGES))
        environment.python("-m", "pytest", "-n", "2", "-m", "not source_tree and not grid", *arguments)


@nox.session
def scaffolds(session: nox.Session) -> None:
    """A plugin of every kind: written; by its import string; installed, checked, trained with; its tests."""
    with clean(session, "digits", pins("constraints.txt"), "pytest") as environment:
        asked = "from curvlab.registry.kinds import KINDS; print(*KINDS)"
        kinds = environment.python("-c", asked, silent=True)
        for kind in str(kinds).split():
            session.chdir(environment.folder)
            write_and_train(session, environment, kind, "my-arrow" if kind == "structure" else f"my-{kind}")


def write_and_train(session: nox.Session, environment: Environment, kind: str, name: str) -> None:
    """What an author types, in this order, but for the import string, which comes before the install."""
    folder = environment.folder / f"curvlab-{name}"
    environment.curvlab("plugins", "new", kind, name)
    if kind not in ("method", "layer"):  # these have no import string that a configuration names
        module = environment.folder / f"{name.replace('-', '_')}.py"
        shutil.copy(folder / f"curvlab_{module.stem}" / module.name, module)
        named = f"{module.stem}:{name.title().replace('-', '')}"
        lines = (folder / "example.toml").read_text(encoding="utf-8").splitlines()
        by_path = [x if x.startswith("name =") else x.replace(f'"{name}"', f'"{named}"') for x in lines]
        (environment.folder / "by_path.toml").write_text("\n".join(by_path), encoding="utf-8")
        environment.curvlab("train", "by_path.toml", PYTHONPATH=str(environment.folder))
    environment.python("-m", "pip", "install", "--quiet", "--editable", folder.name)
    environment.curvlab("plugins", "check", name)
    environment.curvlab("train", f"{folder.name}/example.toml")
    session.chdir(folder)
    environment.python("-m", "pytest", "-q")


#: fails for a package that lies elsewhere
LIES_IN_SITE_PACKAGES = """
import importlib, sys
for name in sys.argv[1:]:
    file = importlib.import_module(name).__file__
    assert "site-packages" in file and file.startswith(sys.prefix), file
    print(file)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment and the folder that it lies in, with nothing of ours on the path."""

    session: nox.Session
    folder: Path

    def python(self, *arguments: str, silent: bool = False) -> object:
        """Run its interpreter; what it printed, if ``silent``."""
        return self._run("python", arguments, {}, silent)

    def curvlab(self, *arguments: str, **env: str) -> object:
        """Run its ``curvlab``."""
        return self._run("curvlab", arguments, env)

    def _run(
        self, command: str, arguments: Sequence[str], env: Mapping[str, str], silent: bool = False
    ) -> object:
        program = self.folder / "environment" / "bin" / command
        others: dict[str, str | None] = {"PYTHONPATH": None, "OMP_NUM_THREADS": "1", **env}
        return self.session.run(str(program), *arguments, external=True, silent=silent, env=others)


@contextmanager
def clean(
    session: nox.Session, extras: str, constraints: Mapping[str, str], *others: str
) -> Iterator[Environment]:
    """A fresh environment with the wheels of the core, with ``extras``, and of every plugin."""
    with tempfile.TemporaryDirectory(prefix="curvlab-") as name:
        environment = Environment(session, Path(name).resolve())
        built = environment.folder / "wheels"
        for project in (ROOT, *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))):
            python(session, "build", "--wheel", "--no-isolation", "--outdir", str(built), str(project))
        files = sorted(built.iterdir())
        if len(files) != len(PACKAGES) or not all(f.name.endswith("-py3-none-any.whl") for f in files):
            session.error(f"not a pure wheel for each of {PACKAGES}: {[f.name for f in files]}")
        pinned = environment.folder / "constraints.txt"
        pinned.write_text("\n".join(constraints.values()), encoding="utf-8")
        python(session, "venv", str(environment.folder / "environment"))
        wanted = [f"{f}[{extras}]" if f.name.startswith("curvlab-") else str(f) for f in files]
        environment.python("-m", "pip", "install", "--quiet", "-c", str(pinned), *wanted, *others)
        yield environment


def pins(name: str) -> dict[str, str]:
    """The lines of a file of constraints, by distribution: several where markers choose."""
    found: dict[str, str] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        distribution, exact, _ = line.partition("==")
        if exact and not line.startswith("#"):
            found[distribution] = "\n".join(filter(None, (found.get(distribution), line)))
    return found


def copy_without_packages(session: nox.Session, tree: Path) -> None:
    """Every file of the repository, but for the packages themselves."""
    listed = session.run(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", external=True, silent=True
    )
    for file in map(Path, str(listed).splitlines()):
        if (ROOT / file).is_file() and not any(file.is_relative_to(package) for package in PACKAGES):
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tree / file)
