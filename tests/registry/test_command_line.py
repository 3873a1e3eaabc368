"""Plugins as the command line meets them: listings, commands, errors, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.registry.sites import ADDS, module, write_distribution


def run(site: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, str(site)])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CURVLAB")}
    return subprocess.run(
        [sys.executable, "-m", "curvlab", *arguments],
        env={**clean, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def troubled(site: Path) -> Path:
    """A site with one plugin of every sort."""
    sources: dict[str, str] = {
        "broken": "raise RuntimeError('no luck')",
        "old": module().replace("1.0", "2.0"),
        "thief": module(ADDS.format(name="armijo")),
        "good": module(
            ADDS.format(name="mine"),
            "@hookimpl\ndef curvlab_cli(app):\n"
            "    @app.command()\n    def greet():\n        print('hello')\n"
            "    @app.command('parts')\n    def theft():\n        print('stolen')\n",
        ),
        "rude": module(more="@hookimpl\ndef curvlab_cli(app):\n    raise ValueError('not today')\n"),
    }
    for name, source in sources.items():
        write_distribution(site, f"dist-{name}", {f"mod_{name}": source}, {name: f"mod_{name}"})
    return site


#: the plugins of ``troubled``, so that what else is installed stays out
TROUBLED = "broken,old,thief,good,rude"


def test_the_command_line_lists_every_plugin_with_its_trouble(troubled: Path) -> None:
    result = run(troubled, "plugins", "list", "--json", CURVLAB_PLUGINS=TROUBLED)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = {r["name"]: r for r in json.loads(result.stdout)}
    statuses = {name: found[name]["status"] for name in ("core", *TROUBLED.split(","))}
    assert statuses == {
        "core": "ok", "broken": "broken", "old": "incompatible", "thief": "clash", "good": "ok", "rude": "ok",
    }  # fmt: skip
    assert "Traceback" in found["broken"]["error"]


def test_commands_of_plugins_are_added_and_take_nobody_elses_name(troubled: Path) -> None:
    assert run(troubled, "greet", CURVLAB_PLUGINS=TROUBLED).stdout == "hello\n"
    result = run(troubled, "parts", "step", CURVLAB_PLUGINS=TROUBLED)
    assert "quadratic-model" in result.stdout
    assert "stolen" not in result.stdout
    assert 'plugin "good": the command "parts" exists already' in result.stderr
    assert 'plugin "rude": curvlab_cli raised ValueError: not today' in result.stderr


def test_a_plugin_blocked_on_the_command_line_adds_no_commands(troubled: Path) -> None:
    result = run(troubled, "-p", "no:good", "greet", CURVLAB_PLUGINS=TROUBLED)
    assert result.returncode == 2
    assert "No such command" in result.stderr
    result = run(troubled, "-pno:rude", "plugins", "list", CURVLAB_PLUGINS=TROUBLED)
    assert "not today" not in result.stderr


def test_the_command_line_says_which_plugin_is_slow_and_goes_on(site: Path) -> None:
    source = "import time\ntime.sleep(1.1)\n" + module(ADDS.format(name="mine"))
    write_distribution(site, "dist-slow", {"mod_slow": source}, {"slow": "mod_slow"})
    listed = run(site, "plugins", "list", CURVLAB_PLUGINS="slow")
    assert (listed.returncode, listed.stderr) == (0, "")
    (line,) = (line for line in listed.stdout.splitlines() if line.startswith("slow "))
    assert re.search(r" ok +1 +slow: it takes \d+\.\d s to load, and every command waits for it", line)
    parts = run(site, "parts", "step", CURVLAB_PLUGINS="slow")
    assert parts.returncode == 0
    assert "mine" in parts.stdout
    assert parts.stderr.startswith('plugin "slow" (dist-slow 1.0) is slow: it takes ')
    assert run(site, "-p", "no:slow", "parts", CURVLAB_PLUGINS="slow").stderr == ""


def test_broken_slow_and_clashing_plugins_stop_no_run_and_the_listing_says_which_and_why(
    site: Path, tmp_path: Path
) -> None:
    sources = {
        "broken": "raise RuntimeError('no luck')",
        "slow": "import time\ntime.sleep(1.1)\n" + module(ADDS.format(name="of-slow")),
        "one": module(ADDS.format(name="same")),
        "other": module(ADDS.format(name="same")),
        "good": module(ADDS.format(name="mine")),
    }
    for name, source in sources.items():
        write_distribution(site, f"dist-{name}", {f"mod_{name}": source}, {name: f"mod_{name}"})
    names = ",".join(sources)
    listed = run(site, "plugins", "list", CURVLAB_PLUGINS=names)
    assert listed.returncode == 0, listed.stderr
    told = {line.split()[0]: line for line in listed.stdout.splitlines()}
    assert "RuntimeError: no luck" in told["broken"]
    assert re.search(r"slow: it takes \d+\.\d s to load", told["slow"])
    assert 'step "same" is also registered by dist-other' in told["one"]
    assert 'step "same" is also registered by dist-one' in told["other"]
    assert told["good"].split()[4:] == ["ok", "1"]
    config = tmp_path / "c.toml"
    config.write_text(ASKS.format("of-slow").replace('"of-slow"', '{ use = "of-slow", lr = 0.1 }'))
    trained = run(site, "train", str(config), "--out", str(tmp_path / "runs"), CURVLAB_PLUGINS=names)
    assert trained.returncode == 0, trained.stderr


def test_a_plugin_that_never_ends_is_named_when_it_is_interrupted(site: Path) -> None:
    """The interrupt comes from the plugin itself, where Ctrl-C would find the process."""
    source = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    write_distribution(site, "dist-endless", {"mod_endless": source}, {"endless": "mod_endless"})
    result = run(site, "plugins", "list", CURVLAB_PLUGINS="endless")
    assert result.returncode == 130
    assert result.stderr == (
        'interrupted while plugin "endless" was loaded; use `-p no:endless` to skip it\n'
    )


def test_strict_ends_at_start_with_exit_4(troubled: Path) -> None:
    result = run(troubled, "parts", CURVLAB_PLUGINS=TROUBLED, CURVLAB_STRICT="1")
    assert result.returncode == 4
    assert result.stderr.startswith("error: CURVLAB_STRICT is set")
    assert result.stderr.count("\n  plugin ") == 3
    assert "Traceback" not in result.stderr


ASKS = """
[run]
steps = 1
[task]
use = "quadratic"
[method]
preconditioner = "identity"
damping = "constant"
step = "{}"
"""


@pytest.mark.parametrize(
    ("use", "code"), [("broken", 4), ("dist-old:x", 4), ("armijo", 3), ("curvlab:armijo", 0)]
)
def test_a_configuration_that_asks_for_a_broken_plugins_part_ends_with_exit_4(
    use: str, code: int, troubled: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(ASKS.format(use))
    result = run(troubled, "config", "check", str(config), CURVLAB_PLUGINS=TROUBLED)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert (f"{config}:9:1: method.step: " in result.stderr) == (code != 0)
