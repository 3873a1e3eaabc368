"""Signals: a run that gets one finishes its step, writes a checkpoint and says how to go on.

SIGTERM and SIGUSR1 are what schedulers send before they take a machine away, SIGHUP what a closed terminal
or connection sends; SIGINT is Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

#: exit status by signal; SIGUSR1 and SIGHUP do not exist everywhere
EXIT_CODES: dict[str, int] = {"SIGTERM": 75, "SIGUSR1": 75, "SIGHUP": 75, "SIGINT": 130}


class Interrupts:
    """Notes signals while it is entered; the loop reads ``caught`` between steps.

    Handlers are set in the main thread only (Python allows no other) and put back on leaving.  The
    first signal counts.  A second Ctrl-C raises ``KeyboardInterrupt`` where the program stands.
    """

    def __init__(self) -> None:
        self.caught: str | None = None
        self._pressed = 0
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """The exit status that the caught signal asks for; 0 if none was caught."""
        return EXIT_CODES[self.caught] if self.caught else 0

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in EXIT_CODES:
                number = getattr(signal, name, None)
                if number is not None and not _under_nohup(number):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python and cannot be put back
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self.caught = self.caught or name
        if name == "SIGINT":
            self._pressed += 1
            if self._pressed > 1:
                raise KeyboardInterrupt


def _under_nohup(number: int) -> bool:
    """Whether this is SIGHUP and was ignored when the run began: ``nohup`` means it to stay so."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN
