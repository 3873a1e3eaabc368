"""Sessions of development.  They run in the environment nox itself runs in: see requirements-dev.txt.

nox             everything
nox -s lint     ruff: rules and format
nox -s types    mypy --strict on the core and the plugins
nox -s tests    the test suite; arguments after -- go to pytest
nox -s docs     the site, into build/docs; every warning is an error
"""

from __future__ import annotations

import sys
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
    """Rules and format."""
    python(session, "ruff", "check", ".")
    python(session, "ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Static types, strictly."""
    python(session, "mypy", "--strict", *PACKAGES)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite: two processes of one thread each, since more threads would fight for the cores."""
    python(session, "pytest", "-n", "2", *session.posargs, OMP_NUM_THREADS="1")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, anew and without a warning; nothing is read from a network."""
    arguments = ("-E", "-W", "--keep-going", "-b", "html", "docs", "build/docs")
    python(session, "sphinx", *arguments, OMP_NUM_THREADS="1")
