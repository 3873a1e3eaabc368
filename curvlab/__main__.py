"""The entry point of ``curvlab`` and of ``python -m curvlab``: the command line.

Ctrl-C before a command runs, and while modules are imported, which takes seconds, ends the process at once
with status 130.  An exception would not: some extension modules swallow it or turn it into another.  In a
command Ctrl-C is ``KeyboardInterrupt`` as ever, and while a run trains it is ``engine/interrupts.py``'s.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

#: the module whose functions import all others
_IMPORTING = "<frozen importlib._bootstrap>"
#: the functions in which ``KeyboardInterrupt`` is understood: one loads plugins, one runs a command
_LOADING, _RUNNING = ("curvlab.registry.loader", "_load"), ("curvlab.cli.app", "invoke")


def main() -> None:
    """The command line; begun here so that imports can be interrupted."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is to be ignored
        signal.signal(signal.SIGINT, _interrupt)
    from curvlab.cli.app import main as command

    command()


def _interrupt(number: int, frame: FrameType | None) -> None:
    running, importing = False, False
    while frame is not None and not running:
        here = frame.f_globals.get("__name__"), frame.f_code.co_name
        if here == _LOADING:  # says which plugin it was that took so long
            raise KeyboardInterrupt
        importing |= frame.f_code.co_filename == _IMPORTING
        running = here == _RUNNING
        frame = frame.f_back
    if running and not importing:
        raise KeyboardInterrupt
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
