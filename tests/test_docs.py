"""What the documents show is run: Python, TOML, commands, links.

A block that cannot run is preceded by ``<!-- not run: REASON -->``; these are few, and counted.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
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
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n+)?^(?P<mark>```+)(?P<kind>[^\n]*)\n(?P<text>.*?)^(?P=mark)$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)")
#: what a test does between two commands of a page: ``<!-- meanwhile: COMMAND -->``
MEANWHILE = re.compile(r"^<!-- meanwhile: (.+) -->$", re.MULTILINE)
#: the first word of a line that somebody would type
TYPED = re.compile(r"^\s*(?:[A-Z_]+=\S+ )*(curvlab|python3?|pip|nox|pytest|asv|apt-get|git|ruff|mypy)\b")
SCRIPT = re.compile(r"^(?:[A-Z_]+=\S+ )*python ((?:asv_benchmarks|examples/studies|docs)/\S+\.py)(.*)$")
UNRUN_MARK = re.compile(r"^<!-- not run: ", re.MULTILINE)
#: all blocks that do not run
UNRUN = 3


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language and text, and why it is not run, if it is not."""

    page: Path
    kind: str
    text: str
    reason: str

    def __str__(self) -> str:
        head = self.text.strip().splitlines() or [""]
        return f"{self.page.relative_to(ROOT)}: {head[0][:40]}"


BLOCKS = [
    Block(page, found["kind"].strip(), found["text"], found["reason"] or "")
    for page in PAGES
    for found in FENCE.finditer(page.read_text())
]


def blocks(kind: str) -> list[object]:
    """Every block of a language that is to run."""
    return [pytest.param(b, id=str(b)) for b in BLOCKS if b.kind == kind and not b.reason]


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(block: Block) -> None:
    exec(compile(block.text, str(block), "exec"), {})


@pytest.mark.parametrize("block", blocks("toml"))
def test_toml_blocks_are_runs_that_train(block: Block, tmp_path: Path) -> None:
    data = tomli.loads(block.text)
    data.setdefault("task", {"use": "digits"})
    data.setdefault("method", {"use": "sgd"})
    data.setdefault("run", {"epochs": 1})
    plan = curvlab.config.build(curvlab.config.load(data=data), installed())
    assert plan.method is not None
    if data["task"]["use"] == "digits":  # the others' data may be missing, or large
        short = {"name": "block", "steps": 2, "log_every": 1, "eval_every": 2}
        run = curvlab.train({**data, "run": short, "report": {"use": "quiet"}}, out=str(tmp_path))
        assert run.summary["steps"] == 2


def shell_pages() -> list[Path]:
    """Pages with commands to run."""
    return [p for p in PAGES if any(b.page == p and b.kind == "sh" and not b.reason for b in BLOCKS)]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", shell_pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path, shell: Shell) -> None:
    text = page.read_text()
    steps = [(m.start(), m[1]) for m in MEANWHILE.finditer(text)]
    steps += [(m.start(), m["text"]) for m in FENCE.finditer(text) if m["kind"] == "sh" and not m["reason"]]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for _, script in sorted(steps):
        shell.run(script, tmp_path)


@dataclass(frozen=True)
class Shell:
    """An environment of its own, in which a page may install things: ours, and what is installed on top."""

    folder: Path

    def run(self, script: str, where: Path) -> None:
        """Run commands in bash; fails at the first that fails."""
        env = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "ROOT": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the value of the option: no isolation
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        env.pop("PYTHONPATH", None)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=where, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.fixture
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = next(p for p in sys.path if p.endswith("site-packages"))
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    for name, module in (("curvlab", "curvlab"), ("pip", "pip"), ("pytest", "pytest")):
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
        command.chmod(0o755)
    return Shell(folder)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind in ("", "text") and not b.reason], ids=str)
def test_blocks_without_a_language_hold_no_commands_but_of_scripts(block: Block) -> None:
    """Scripts that measure take minutes: that they exist and know the options is what is tested here."""
    for line in block.text.splitlines():
        if not TYPED.match(line):
            continue
        found = SCRIPT.match(line.strip())
        assert found, f"{line!r}: commands stand in a block of language sh"
        script = ROOT / found[1]
        options = {word.partition("=")[0] for word in shlex.split(found[2]) if word.startswith("--")}
        assert all(option in script.read_text() for option in options), line


def test_every_block_is_of_a_language_that_is_looked_at() -> None:
    directives = {"{toctree}", "{raw} html"}
    kinds = {b.kind for b in BLOCKS if not b.kind.startswith("{literalinclude}")} - directives
    assert kinds <= {"python", "toml", "sh", "text", ""}


def test_blocks_that_do_not_run_are_few_and_say_why() -> None:
    marked = [b for b in BLOCKS if b.reason]
    assert len(marked) == UNRUN
    assert sum(len(UNRUN_MARK.findall(p.read_text())) for p in PAGES) == UNRUN
    assert all(len(b.reason.split()) > 2 for b in marked)


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
