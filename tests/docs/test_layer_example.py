"""The example of a layer plugin is short, and teaches every method of layers its layer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.scaffold.generated import FIRST_PARTY, ROOT, write_metadata

EXAMPLE = ROOT / "docs" / "examples" / "curvlab-spread"

#: lines that are not empty
LINES = 30


def test_its_reader_is_short() -> None:
    text = (EXAMPLE / "curvlab_spread" / "spread.py").read_text(encoding="utf-8")
    assert sum(bool(line.strip()) for line in text.splitlines()) <= LINES


def test_its_own_tests_pass_where_it_is_installed(tmp_path: Path) -> None:
    """The suite, and that kfac, ekfac and singd treat its layer themselves."""
    write_metadata(tmp_path, "curvlab-spread", "spread", "curvlab_spread")
    for name in FIRST_PARTY:
        write_metadata(tmp_path, f"curvlab-{name}", name, f"curvlab_{name}")
    ours = [tmp_path, EXAMPLE, ROOT, *(ROOT / "plugins" / name for name in FIRST_PARTY)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=EXAMPLE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, ours)),
            "CURVLAB_PLUGINS": ",".join((*FIRST_PARTY, "spread")),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
