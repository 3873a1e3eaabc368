"""How long it takes until something answers, and how much is imported by then."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

#: what a process of its own runs
STARTS = {
    "import": "import curvlab",
    "registry": "from curvlab.registry.loader import installed; installed()",
    "help": "import sys; sys.argv = ['curvlab', '--help']; from curvlab.cli.app import main; main()",
    "methods": "import sys; sys.argv = ['curvlab', 'methods']; from curvlab.cli.app import main; main()",
}

#: counts the modules of others: ours may be many and small, others' are what takes time
COUNT = """
import sys
try:
    {code}
except SystemExit:
    pass
print(len([m for m in sys.modules if not m.startswith("curvlab")]), file=sys.stderr)
"""


def run(code: str) -> str:
    """What Python writes to stderr; nothing is cached between calls but byte code."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr


class Modules:
    """Modules that are not curvlab's."""

    version = "1"
    param_names: ClassVar = ["start"]
    params: ClassVar = [list(STARTS)]

    def track_modules(self, start: str) -> float:
        return float(run(COUNT.format(code=STARTS[start])).split()[-1])

    track_modules.unit = "modules"  # type: ignore[attr-defined]


class Time:
    """Seconds of the whole process, Python's own start included."""

    version = "1"
    warmup_time = 0
    number = 1
    rounds = 2
    repeat = (3, 5, 3.0)
    param_names: ClassVar = ["start"]
    params: ClassVar = [list(STARTS)]

    def setup(self, start: str) -> None:
        run(STARTS[start])

    def time_start(self, start: str) -> None:
        run(STARTS[start])
