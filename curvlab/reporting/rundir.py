"""Reading a run's folder, with the standard library alone; ``runlog.py`` writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvlab.errors import UsageError
from curvlab.files import read_document, read_lines, reading

CONFIG, RESOLVED, MANIFEST = "config.toml", "resolved.toml", "manifest.json"
METRICS, EVENTS, SUMMARY, CHECKPOINTS = "metrics.jsonl", "events.jsonl", "summary.json", "checkpoints"


def judged_by(manifest: Mapping[str, Any]) -> tuple[str, bool]:
    """The metric that the task is judged by, and whether more is better; by default less ``val_loss``."""
    judged = manifest.get("judged_by")
    if not isinstance(judged, Mapping):
        return "val_loss", False
    return str(judged.get("metric", "val_loss")), bool(judged.get("more_is_better", False))


@dataclass(frozen=True)
class RunDir:
    """A run's folder.  A file that is not there yet reads as empty; a torn last line is passed over.

    Everything raises ``RunFolderError`` for a file that cannot be read or is damaged.
    """

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """The folder at ``path``; raises ``UsageError`` if that is not a run's."""
        with reading(path):
            is_run = (path / RESOLVED).is_file()
        if not is_run:
            what = "has no resolved.toml: it is not a run's folder" if path.is_dir() else "is not a folder"
            raise UsageError(f"{path} {what}; give one that `curvlab train` made: runs/NAME-TIME-HASH")
        return cls(path)

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run was made from and where it ran."""
        return self._document(MANIFEST)

    @property
    def summary(self) -> dict[str, Any]:
        """What came of it; empty while it runs and after a SIGKILL."""
        return self._document(SUMMARY)

    @property
    def finished(self) -> bool:
        """Whether the run came to the end of its budget."""
        return self.summary.get("exit_reason") == "finished"

    def in_use(self) -> bool:
        """Whether a process trains in the folder; never on Windows, where no lock says so."""
        try:
            import fcntl
        except ImportError:
            return False
        path = self.path / CONFIG
        with reading(path), path.open("rb") as file:
            try:  # shared, and given back at once: a run that begins meanwhile waits for longer than this
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def resolved(self) -> str:
        """The text of the configuration with everything spelled out."""
        path = self.path / RESOLVED
        with reading(path):
            return path.read_text(encoding="utf-8", errors="replace")

    def steps(self) -> list[dict[str, Any]]:
        """The step lines of ``metrics.jsonl``."""
        return [line for line in self.lines(METRICS) if line.get("kind") == "step"]

    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluation lines of ``metrics.jsonl``."""
        return [line for line in self.lines(METRICS) if line.get("kind") == "eval"]

    def events(self) -> list[dict[str, Any]]:
        """The lines of ``events.jsonl``."""
        return list(self.lines(EVENTS))

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """The objects of a ``.jsonl`` file, but for a last line that was torn by a kill."""
        return read_lines(self.path / name)

    def _document(self, name: str) -> dict[str, Any]:
        return read_document(self.path / name, "delete it; the next `curvlab resume` writes a new one")
