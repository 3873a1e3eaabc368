"""The command line with the fake plugin of ``tests/config/site`` as the only one installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from curvlab.cli.app import app

ROOT = Path(__file__).parents[2]
SITE = ROOT / "tests" / "config" / "site"
ENVIRONMENT = {"CURVLAB_PLUGINS": "curvlab-fake", "CURVLAB_DISABLE_PLUGINS": "", "CURVLAB_STRICT": ""}

Invoke = Callable[..., Result]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """``invoke("parts", "--json")`` in this process."""
    monkeypatch.syspath_prepend(str(SITE))
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def shell() -> Shell:
    """``shell("parts", "--json")`` in a process of its own; ``python=`` runs other Python instead."""

    def run(*arguments: str, python: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["-c", python] if python else ["-m", "curvlab"]
        path = os.pathsep.join([str(ROOT), str(SITE)])
        return subprocess.run(
            [sys.executable, *command, *arguments],
            env={**os.environ, "PYTHONPATH": path, **ENVIRONMENT, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
