"""Runs commands of ``curvlab``, each in a process of its own, with torch imported once for all of them.

Commands come as a JSON list of lists of words on standard input; what they returned and printed goes to the
file that the argument names.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Fork for every command; the child leaves as an interpreter does, with its exit handlers."""
    import curvlab.config.plan
    import curvlab.engine.run  # noqa: F401 (everything heavy, and no plugin)
    from curvlab.cli.app import main as command_line

    found = []
    for words in json.load(sys.stdin):
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = ["curvlab", *words]
                command_line()
                return
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for stream in (out, err):
                stream.seek(0)
            found.append([code, out.read().decode(), err.read().decode()])
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
