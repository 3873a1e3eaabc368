"""Every error curvlab raises on purpose.

    CurvlabError                     1  the run failed
    ├── UsageError                   2  the command line or a call was wrong
    ├── ConfigError                  3  a configuration is wrong; carries every fault found
    │   ├── CoverageError            3  some parameters would be trained by nobody
    │   ├── CapabilityError          3  a part lacks what another part asks of it
    │   ├── NeedsObjective           3  a method asks for more than ``loss.backward()`` leaves behind
    │   ├── UnsupportedEvidence      3  a part was handed evidence that it cannot use
    │   └── Unrepeatable             3  a layer that gives other outputs for the same inputs
    ├── DataError                    3  the data of a task is missing or malformed
    ├── PluginError                  4  an installed plugin is broken, clashing or incompatible
    ├── CheckpointError              1  a checkpoint is missing, damaged or of another run
    ├── RunFolderError               1  a file of a run's folder cannot be read or written, or is damaged
    ├── OutOfMemory                  1  an allocation failed
    ├── NotPositiveDefinite          5  a factorization failed, in float64 too
    ├── Diverged                     5  a non-finite value that no retry removed
    ├── ResultsError                 1  results of benchmarks are missing or malformed
    ├── Regression                   6  a benchmark got worse
    └── Stopped                 75/130  a signal ended the run after a checkpoint

The number is the exit status of the command line.  A message names the part, the block or the
file and line, what came, what was expected and what to do.  ``assert`` is for our own invariants.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

#: so much of a line of a message, of a key, and of a user's own line is shown
LONGEST_LINE, LONGEST_KEY, LONGEST_SOURCE = 400, 100, 160


def printable(text: str) -> str:
    """``text`` with escapes for the characters that a terminal obeys rather than shows; newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def shortened(text: str, longest: int = LONGEST_LINE) -> str:
    """``text`` without the middle of every line that is longer than ``longest`` characters."""
    return "\n".join(_without_middle(line, longest) for line in text.split("\n"))


def _without_middle(line: str, longest: int) -> str:
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 3]} … {line[-end:]}"


class CurvlabError(Exception):
    """Base of all: an error that a user can understand without reading our code."""

    exit_code = 1


class UsageError(CurvlabError):
    """A command line or a Python call that cannot be meant."""

    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One fault of a configuration: where it stands, what is wrong, what to do.

    ``path`` is the dotted key (``method.lr``); ``file`` and ``line`` (from 1) say where the value
    was written, ``None`` for values that were given in Python or are missing altogether; ``source``
    is that line's text.
    """

    message: str
    path: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None
    hint: str = ""
    source: str = ""

    def __str__(self) -> str:
        where = ":".join(str(p) for p in (self.file, self.line, self.column) if p is not None)
        path = shortened(self.path.replace("\n", "\\n"), LONGEST_KEY)
        lines = [": ".join(p for p in (where, path, shortened(self.message)) if p)]
        if self.source:
            lines.append(f"    {shortened(self.source.strip(), LONGEST_SOURCE)}")
        if self.hint:
            lines.append(f"  {self.hint}")
        return printable("\n".join(lines))


class ConfigError(CurvlabError):
    """A configuration with one or more faults, all listed."""

    exit_code = 3

    def __init__(self, *faults: Fault | str) -> None:
        self.faults: tuple[Fault, ...] = tuple(f if isinstance(f, Fault) else Fault(f) for f in faults)
        super().__init__("\n".join(str(f) for f in self.faults))


class CoverageError(ConfigError):
    """Parameters that no part of the method treats, and no fallback takes."""


class CapabilityError(ConfigError):
    """A part of the right kind that cannot do what is asked (a Group where a Gram is needed)."""


class NeedsObjective(ConfigError):
    """``optimizer.step()`` was called without an objective, but a part asks for one."""

    def __init__(self, part: str, asked: Sequence[str]) -> None:
        super().__init__(
            Fault(
                f"{part} needs {', '.join(asked)}; loss.backward() does not compute this",
                hint="call optimizer.step(curvlab.objective(model, criterion, inputs, targets)); "
                'or set labels = "data" or "none", if the method has that knob',
            )
        )


class UnsupportedEvidence(ConfigError):
    """Evidence that a part cannot use: names the part, the block, what came and what it takes."""

    def __init__(self, part: str, block: str, expected: str, got: str, hint: str = "") -> None:
        where = f'{part} on block "{block}"' if block else part
        super().__init__(Fault(f"{where}: expected {expected}, got {got}", hint=hint))


class Unrepeatable(ConfigError):
    """The objective is no function of the parameters: ``what`` gives other outputs every time."""

    def __init__(self, what: str) -> None:
        super().__init__(
            Fault(
                f"{what} gave different outputs in two calls with the same inputs and parameters."
                " Gauss-Newton products and trial losses need a model that repeats its outputs",
                hint="draw random numbers from torch's global generators, which each step resets, and keep"
                " state in buffers; or call eval() on the layer, or use a method without products",
            )
        )


class DataError(CurvlabError):
    """A task's data is not there or not what it should be; says how to get it."""

    exit_code = 3


class PluginError(CurvlabError):
    """A plugin that cannot be used: broken at import, clashing, or of another API version."""

    exit_code = 4


class CheckpointError(CurvlabError):
    """A checkpoint that is missing, torn, of another version or of another method."""


class RunFolderError(CurvlabError):
    """A run's folder that cannot be made, read or written, or a file in it that is damaged."""


class OutOfMemory(CurvlabError):
    """The memory of this machine or of a device is too small for the run."""


class NotPositiveDefinite(CurvlabError):
    """No Cholesky factor or finite eigenvalues, after the retry in float64."""

    exit_code = 5


@contextmanager
def naming_block(name: str) -> Iterator[None]:
    """Say which block it was when a factorization fails inside."""
    try:
        yield
    except NotPositiveDefinite as error:
        raise NotPositiveDefinite(f'block "{name}": {error}') from error


class Diverged(CurvlabError):
    """A non-finite loss, gradient or update that no rung of the ladder removed."""

    exit_code = 5


class ResultsError(CurvlabError):
    """Results of benchmarks that are not there or not what asv writes; says how to get them."""


class NoResults(ResultsError):
    """A folder without any number: nothing was run there, or the run died before its first result."""


class Regression(CurvlabError):
    """A benchmark got worse, beyond what its gate lets through; names it."""

    exit_code = 6


class Stopped(CurvlabError):
    """A signal ended the run; a whole checkpoint was written before this was raised."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


#: the most characters of a foreign message that a line of ours repeats
_LONGEST_MESSAGE = 300

#: packages through which plugins and parts are called; their frames are not where a plugin failed
_CALLERS = frozenset(
    {"curvlab", "importlib", "_frozen_importlib", "pluggy", "contextlib", "typer", "click", "torch"}
)


def raised(error: BaseException) -> str:
    """What foreign code raised, on one line: ``RuntimeError: no luck (my_plugin/parts.py:12)``.

    Safe for an exception whose own ``__str__`` fails.  The place is the innermost line of the package
    that was called; a syntax error names its own.
    """
    try:
        message = str(error)
    except BaseException as failure:  # __str__ is foreign code, too
        message = f"its message cannot be shown, since __str__ raised {type(failure).__name__}"
    message = _on_one_line(message[: 2 * _LONGEST_MESSAGE])
    if len(message) > _LONGEST_MESSAGE:
        message = message[: _LONGEST_MESSAGE - 1] + "…"
    words = f"{type(error).__name__}: {message}" if message else type(error).__name__
    place = "" if isinstance(error, SyntaxError) else place_of(error.__traceback__)
    return f"{words} ({place})" if place else words


def place_of(trace: TracebackType | None) -> str:
    """``file:line`` of the innermost line in the package that our code called, or nothing."""
    found, package = "", ""
    for frame, line in traceback.walk_tb(trace):
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if top in _CALLERS:
            package = ""
            continue
        package = package or top
        if top == package:
            found = f"{frame.f_code.co_filename}:{line}"
    return _on_one_line(found)


def _on_one_line(text: str) -> str:
    """``text`` on one line, control characters and lone surrogates escaped."""
    return printable(" ".join(text.split()))
