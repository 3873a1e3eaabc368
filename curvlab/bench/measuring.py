"""Running asv for commits that have no results yet, and the words for doing it by hand."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from curvlab.bench.intended import NAME
from curvlab.errors import ResultsError, UsageError

#: where a project keeps asv's configuration: this one, and a plugin that `curvlab plugins new` made
PLACES = ("asv_benchmarks/asv.conf.json", "asv.conf.json")

#: what asv calls the file where it keeps its machines
_MACHINES = ".asv-machine.json"

#: what asv exits with if a benchmark failed; its result tells which
_SOME_FAILED = 2


@dataclass(frozen=True)
class Suite:
    """A project's benchmarks: asv's configuration, and where it keeps results."""

    config: Path
    results: Path

    @property
    def intended(self) -> Path:
        """Where maintainers write what changes of benchmarks they intended."""
        return self.config.parent / NAME

    def command(self, machine: str, *, times: bool, bench: str = "") -> list[str]:
        """What measures the commits on its standard input; ``bench``: benchmarks whose name matches that.

        Times are taken in turns: a machine that slows down slows both.
        """
        on = ["--machine", machine] if machine else []
        if times:
            chosen = ["--interleave-rounds", *(["--bench", bench] if bench else [])]
        else:
            named = rf"(?=.*(?:{bench})).*\btrack_" if bench else r"\btrack_"
            chosen = ["--bench", named, "--skip-existing-successful"]
        return ["asv", "run", "--config", str(self.config), *on, *chosen, "HASHFILE:-"]

    def words(self, commits: Sequence[str], machine: str, *, times: bool, bench: str = "") -> str:
        """The same for a shell."""
        command = shlex.join(self.command(machine, times=times, bench=bench))
        return f"printf '%s\\n' {' '.join(commits)} | {command}"

    def measure(self, commits: Sequence[str], machine: str, *, times: bool, bench: str = "") -> None:
        """Run asv; what it prints goes to stderr.  Raises ``ResultsError`` if it fails."""
        self._know_machine(machine)
        _, *arguments = self.command(machine, times=times, bench=bench)
        done = subprocess.run(
            [sys.executable, "-m", "asv", *arguments],
            input="".join(f"{commit}\n" for commit in commits),
            text=True,
            stdout=sys.stderr,
            check=False,
        )
        if done.returncode not in (0, _SOME_FAILED):
            how = self.words(commits, machine, times=times, bench=bench)
            raise ResultsError(f"asv ended with {done.returncode}:\n  {how}")

    def _know_machine(self, machine: str) -> None:
        """asv asks about a machine that it does not know, and there may be no user to answer."""
        path = Path.home() / _MACHINES
        if path.is_file() and (not machine or f'"{machine}"' in path.read_text(encoding="utf-8")):
            return
        named = ["--machine", machine] if machine else []
        command = [sys.executable, "-m", "asv", "machine", "--yes", "--config", str(self.config), *named]
        subprocess.run(command, stdout=sys.stderr, check=False)


def measured(
    folder: Path, commits: Sequence[str], machine: str, *, times: bool, run: bool, bench: str = ""
) -> None:
    """Let asv measure ``commits`` of the project that ``folder`` lies in.

    Raises ``ResultsError`` with the command if that is not to be ``run`` here, or asv is not installed.
    """
    found = required(folder)
    if run and find_spec("asv") is not None:
        print(f"asv measures {' and '.join(c[:8] for c in commits)}", file=sys.stderr)
        found.measure(commits, machine, times=times, bench=bench)
        return
    why = (
        "asv is not installed: pip install asv, then"
        if run
        else "measure, and say --results with its folder:"
    )
    how = found.words(commits, machine, times=times, bench=bench)
    raise ResultsError(f"no results of {' and '.join(c[:8] for c in commits)}; {why}\n  {how}")


def required(folder: Path) -> Suite:
    """The benchmarks of the project that ``folder`` lies in.

    Raises ``UsageError`` if it has none, ``ResultsError`` if asv's configuration cannot be read.
    """
    for parent in (folder, *folder.parents):
        for place in PLACES:
            path = parent / place
            if path.is_file():
                results = _settings(path).get("results_dir", "results")
                return Suite(path, path.parent / str(results))
    raise UsageError(
        f"{folder} is in no project with benchmarks ({' or '.join(PLACES)}): say --results PATH, "
        "asv's folder of results or a file that `curvlab bench history --json` printed"
    )


def _settings(path: Path) -> dict[str, Any]:
    """asv's configuration: JSON with lines of comments."""
    text = re.sub(r"^\s*//.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as err:
        raise ResultsError(f"{path}:{err.lineno}:{err.colno} is not JSON: {err.msg}") from err
    if not isinstance(found, dict):
        raise ResultsError(f"{path} is not asv's configuration: expected an object")
    return found
