"""What is installed, as tables and as JSON."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest
import tomli

from curvlab.config import load
from curvlab.config.plan import build
from curvlab.registry import discover
from curvlab.registry.kinds import PROTOCOLS
from curvlab.registry.loader import candidates
from tests.cli.conftest import ENVIRONMENT, ROOT, SITE, Invoke, Shell


def test_methods_lists_name_distribution_and_summary(invoke: Invoke) -> None:
    lines = invoke("methods").stdout.splitlines()
    assert lines[0].split() == ["method", "distribution", "what", "it", "is"]
    assert [line.split()[0] for line in lines[1:]] == ["fake", "plain"]
    assert "two factors, momentum, a fallback and a sampler of its own" in lines[1]


def test_methods_as_json_is_one_document(invoke: Invoke) -> None:
    fake, plain = json.loads(invoke("methods", "--json").stdout)
    assert (fake["name"], fake["distribution"], fake["version"]) == ("fake", "curvlab-fake", "1.2")
    assert fake["reference"] == "nobody, never"
    assert plain["summary"] == "a rate and nothing else"


def test_one_method_is_shown_as_toml_that_composes_it(invoke: Invoke) -> None:
    text = invoke("methods", "fake").stdout
    for words in ("curvlab-fake 1.2", "# needs: the gradient", "# reference: nobody, never", "rate of both"):
        assert words in text
    assert "#   momentum      sets on_update.momentum.beta (default 0.9)" in text
    shown = tomli.loads(text)
    assert shown == {"method": json.loads(invoke("methods", "fake", "--json").stdout)["method"]}
    registry = discover(plugins=[c for c in candidates() if c.distribution == "curvlab-fake"], strict=True)
    rest: dict[str, Any] = {"run": {"steps": 1}, "task": "quadratic"}
    composed = build(load(data=rest | shown), registry)
    assert composed.method == build(load(data=rest | {"method": "fake"}), registry).method


def test_one_method_as_json_names_its_knobs(invoke: Invoke) -> None:
    found = json.loads(invoke("methods", "fake", "--json").stdout)
    assert found["knobs"]["lr"] == {
        "sets": ["step.lr", "fallback.lr"],
        "default": 0.03,
        "help": "rate of both",
    }
    assert found["needs"] == "the gradient"


def test_an_unknown_method_suggests_the_nearest(invoke: Invoke) -> None:
    result = invoke("methods", "fke")
    assert result.exit_code == 3
    assert 'Did you mean "fake"' in result.stderr


def test_parts_lists_every_part_of_every_kind(invoke: Invoke) -> None:
    rows = json.loads(invoke("parts", "--json").stdout)
    assert {row["kind"] for row in rows} == set(PROTOCOLS)
    assert {"kind", "name", "distribution", "version", "summary", "factory", "preset"} <= rows[0].keys()
    lines = invoke("parts").stdout.splitlines()
    assert len(lines) == len(rows) + 1
    assert all(
        row["name"] in line and row["summary"] in line for row, line in zip(rows, lines[1:], strict=True)
    )


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_parts_of_one_kind_are_that_kind_alone(kind: str, invoke: Invoke) -> None:
    assert {row["kind"] for row in json.loads(invoke("parts", kind, "--json").stdout)} == {kind}


def test_an_unknown_kind_suggests_the_nearest(invoke: Invoke) -> None:
    result = invoke("parts", "steps")
    assert result.exit_code == 2
    assert 'Did you mean "step"' in result.stderr


def test_tasks_say_where_their_data_come_from(invoke: Invoke) -> None:
    rows = {row["name"]: row for row in json.loads(invoke("tasks", "--json").stdout)}
    assert rows["digits"]["source"] == "inside scikit-learn"
    assert "dataset-fashion-mnist" in invoke("tasks").stdout


def test_plugins_are_listed_with_versions_and_status(invoke: Invoke) -> None:
    records = {r["name"]: r for r in json.loads(invoke("plugins", "list", "--json").stdout)}
    assert records["fake"]["status"] == "ok"
    assert records["fake"]["parts"][-2:] == ["method/fake", "method/plain"]
    line = next(line for line in invoke("plugins", "list").stdout.splitlines() if line.startswith("fake"))
    assert line.split() == ["fake", "curvlab-fake", "1.2", "1.0", "ok", "7"]


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal of 60 columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    path = os.pathsep.join([str(ROOT), str(SITE)])
    process = subprocess.Popen(
        [sys.executable, "-m", "curvlab", *arguments],
        stdout=theirs,
        env={**clean, **ENVIRONMENT, "TERM": "xterm-256color", "PYTHONPATH": path, **environment},
    )
    os.close(theirs)
    written = b""
    while chunk := _read(ours):
        written += chunk
    os.close(ours)
    assert process.wait() == 0
    return written.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end was closed
        return b""


def test_a_terminal_gets_wrapped_lines_and_color_unless_no_color_is_set() -> None:
    colored, plain = on_a_terminal("methods"), on_a_terminal("methods", NO_COLOR="1")
    assert re.search(r"\x1b\[[\d;]*3\d", colored)
    assert not re.search(r"\x1b\[[\d;]*3\d", plain)
    lines = re.sub(r"\x1b\[[\d;]*m", "", plain).splitlines()
    assert all(len(line.rstrip()) <= 60 for line in lines)
    column = lines[0].index("what it is")
    words = "".join(line[column:].replace(" ", "") for line in lines[1:])
    assert words == "twofactors,momentum,afallbackandasamplerofitsownarateandnothingelse"


@pytest.mark.parametrize("command", [["methods"], ["parts"], ["tasks"], ["plugins", "list"]])
def test_nothing_is_cut_in_a_pipe(command: list[str], shell: Shell) -> None:
    narrow, wide = shell(*command, COLUMNS="20"), shell(*command, COLUMNS="500")
    assert narrow.returncode == 0
    assert narrow.stdout == wide.stdout
    assert "…" not in narrow.stdout
    assert "\x1b" not in narrow.stdout
    assert all(line == line.rstrip() for line in narrow.stdout.splitlines())
