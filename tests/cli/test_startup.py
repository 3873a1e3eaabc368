"""Listings answer at once: no torch, and little time."""

from __future__ import annotations

import json
import time

import pytest

from tests.cli.conftest import Shell

#: what answers before anything is computed
LISTINGS = [
    ["--help"],
    ["--version"],
    ["methods"],
    ["methods", "fake"],
    ["methods", "--json"],
    ["parts"],
    ["parts", "step", "--json"],
    ["tasks"],
    ["tasks", "--help"],
    ["tasks", "prepare", "--help"],
    ["plugins", "list"],
    ["train", "--help"],
    ["plot", "--help"],
    ["compare", "--help"],
    ["runs", "--help"],
    ["init", "--help"],
    ["export", "--help"],
    ["config", "--help"],
    ["bench", "--help"],
    ["bench", "compare", "--help"],
]

#: too slow to import for a listing
HEAVY = ("torch", "numpy", "sklearn", "scipy", "matplotlib", "safetensors", "jaxtyping")

#: what listings import of ours; Typer itself may import pydantic while it reads arguments
OURS = (
    "bench.compact",
    "cli.app",
    "cli.beginning",
    "cli.benching",
    "cli.comparing",
    "comparing.comparison",
    "comparing.page",
    "comparing.words",
    "cli.exporting",
    "cli.listing",
    "cli.plotting",
    "cli.preparing",
    "cli.run",
    "config",
    "config.knobs",
    "registry",
    "default_plugin",
)

#: runs the command line, then says on stderr which modules were imported and how much CPU time that took
PROBE = """
import json, sys, time
import curvlab.cli.app
try:
    curvlab.cli.app.main()
finally:
    report = {"modules": sorted(sys.modules), "seconds": time.process_time()}
    print("PROBE", json.dumps(report), file=sys.stderr)
"""

#: the promise is half a second; a loaded machine may take five times as long
SECONDS = 0.5
MARGIN = 5


@pytest.mark.parametrize("arguments", LISTINGS, ids=" ".join)
def test_listings_import_nothing_heavy_and_answer_in_half_a_second(
    arguments: list[str], shell: Shell
) -> None:
    result = shell(*arguments, python=PROBE)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    report = json.loads(result.stderr.partition("PROBE ")[2])
    assert [name for name in HEAVY if name in report["modules"]] == []
    assert report["seconds"] < SECONDS * MARGIN


@pytest.mark.parametrize("module", OURS)
def test_what_listings_need_of_ours_imports_no_validation_either(module: str, shell: Shell) -> None:
    code = f"import sys, curvlab.{module}; print(sorted(set(sys.modules) & {{'pydantic', *{HEAVY!r}}}))"
    assert shell(python=code).stdout == "[]\n"


def test_the_probe_would_see_torch(shell: Shell) -> None:
    result = shell(
        python=PROBE.replace("import curvlab.cli.app", "import torch, curvlab.cli.app", 1), NO_COLOR="1"
    )
    assert "torch" in json.loads(result.stderr.partition("PROBE ")[2])["modules"]


def test_importing_curvlab_costs_next_to_nothing(shell: Shell) -> None:
    started = time.perf_counter()
    result = shell(
        python="import sys, curvlab; print(sorted(set(sys.modules) & {'torch', 'pluggy', 'typer', 'tomli'}))"
    )
    assert result.stdout == "[]\n"
    assert time.perf_counter() - started < SECONDS * MARGIN


#: the command line, with a Ctrl-C while the module that is named first is looked for
INTERRUPTED = """
import signal, sys
from curvlab.__main__ import main
name = sys.argv.pop(1)
class Finder:
    def find_spec(self, found, path=None, target=None):
        if found == name:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                pass  # as some extension modules do
sys.meta_path.insert(0, Finder())
main()
"""


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_ctrl_c_while_modules_are_imported_ends_with_130(module: str, shell: Shell) -> None:
    """Before any command, and in one, whatever the module makes of ``KeyboardInterrupt``."""
    done = shell(module, "config", "schema", python=INTERRUPTED)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_elsewhere_is_keyboard_interrupt(shell: Shell) -> None:
    code = (
        "import signal\nfrom curvlab.cli import app, listing\nfrom curvlab.__main__ import main\n"
        "listing.installed = lambda: signal.raise_signal(signal.SIGINT)\nmain()"
    )
    done = shell("parts", python=code)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
