"""What a plugin's code may not change for others while it is loaded: streams, folder, arguments, signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

#: handlers that a command relies on
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM"))


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Inside, what is printed goes to standard error; afterwards the process is as it was.

    Standard streams and file descriptors 1 and 2 that are closed, detached or replaced inside, the working
    directory, ``sys.argv`` and the handlers of SIGINT and SIGTERM are put back.  Only the command line
    redirects what is written to descriptor 1 itself (``curvlab.cli.output.reserve``): in a user's program
    the descriptor is the user's.
    """
    out, err, arguments, folder = sys.stdout, sys.stderr, list(sys.argv), _folder()
    handlers, descriptors = _handlers(), _descriptors()
    if err is not None:
        sys.stdout, sys.stderr = _Lines(err), _Lines(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.argv = out, err, arguments
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if folder is not None and _folder() != folder:
            os.chdir(folder)
        for number, copy in descriptors.items():
            os.dup2(copy, number)
            os.close(copy)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _descriptors() -> dict[int, int]:
    """Copies of those of the standard descriptors that are open."""
    found = {}
    for number in (1, 2):
        with contextlib.suppress(OSError):
            found[number] = os.dup(number)
    return found


def _handlers() -> dict[int, Any]:
    """Handlers set from Python; only the main thread may put them back."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in found.items() if handler is not None}


class _Bytes(io.RawIOBase):
    """The bytes below ``_Lines``: closing them closes no stream of the process."""

    def __init__(self, target: TextIO) -> None:
        self._target = target

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._target.write(bytes(data).decode("utf-8", "backslashreplace"))
        return len(data)


class _Lines(io.TextIOBase):
    """A text stream onto another one; closing or detaching it leaves the other one open."""

    encoding = "utf-8"

    def __init__(self, target: TextIO) -> None:
        self._target = target

    @property
    def buffer(self) -> io.RawIOBase:
        """Where a program that writes bytes writes them."""
        return _Bytes(self._target)

    def detach(self) -> Any:
        return _Bytes(self._target)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._target.write(text)
        return len(text)

    def flush(self) -> None:
        self._target.flush()

    def fileno(self) -> int:
        return self._target.fileno()

    def isatty(self) -> bool:
        return self._target.isatty()
