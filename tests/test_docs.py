"""What the documents show is run: Python blocks, TOML blocks, commands, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli

import curvlab.config
from curvlab.registry.loader import installed

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    p
    for pattern in ("README.md", "docs/**/*.md", "plugins/*/README.md", "changelog.d/*.md")
    for p in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:\s]+)\)")


def blocks(language: str) -> list[object]:
    """Every fenced block of a language, named by its page."""
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}:{k}")
        for page in PAGES
        for k, (kind, text) in enumerate(FENCE.findall(page.read_text()))
        if kind == language
    ]


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text: str) -> None:
    exec(compile(text, "block", "exec"), {})


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_blocks_are_methods_that_build(text: str) -> None:
    data = tomli.loads(text)
    data.setdefault("task", {"use": "digits"})
    data.setdefault("run", {"epochs": 1})
    plan = curvlab.config.build(curvlab.config.load(data=data), installed())
    assert plan.method is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_files_resolve(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("config", sorted(ROOT.glob("examples/*.toml")), ids=lambda p: p.name)
def test_examples_build(config: Path) -> None:
    plan = curvlab.config.build(curvlab.config.load([config]), installed())
    assert plan.run.name


def test_the_readme_holds_the_two_commands_as_ci_runs_them() -> None:
    readme = (ROOT / "README.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    tests = "python3 -m venv .venv && .venv/bin/pip install -r requirements-dev.txt && .venv/bin/nox -s tests"
    assert tests in readme
    assert tests in ci
    assert ".venv/bin/curvlab train examples/quickstart.toml" in readme
