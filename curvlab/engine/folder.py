"""A run's folder as the engine needs it: made once, never overwritten, used by one process at a time.

What is logged into it is a reporter's business; checkpoints are ``checkpoint.py``'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from curvlab.engine.checkpoint import newest, write_atomically
from curvlab.engine.plan import Plan
from curvlab.errors import UsageError

CONFIG, RESOLVED, MANIFEST = "config.toml", "resolved.toml", "manifest.json"
SUMMARY, CHECKPOINTS = "summary.json", "checkpoints"


def create(out: Path, plan: Plan) -> Path:
    """A new folder ``out/<name>-<UTC time>-<hash>`` with ``config.toml`` and ``resolved.toml`` in it.

    The hash is of the resolved configuration.  Two runs of one configuration in one second wait for
    each other's name: no folder is ever used twice.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plan.resolved, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    while True:
        now = datetime.now(timezone.utc)
        folder = out / f"{plan.run.name}-{now:%Y%m%dT%H%M%SZ}-{digest}"
        try:
            folder.mkdir()
            break
        except FileExistsError:
            time.sleep(1.0 - now.microsecond / 1e6)
    write_atomically(folder / CONFIG, plan.given)
    write_resolved(folder, plan)
    return folder


def write_resolved(folder: Path, plan: Plan) -> None:
    """Write ``resolved.toml``; on resume, with the settings that were changed."""
    write_atomically(folder / RESOLVED, tomli_w.dumps(dict(plan.resolved)))


def summary_of(folder: Path) -> Mapping[str, Any]:
    """The content of ``summary.json``; empty if there is none."""
    return _document(folder / SUMMARY)


def threads_of(folder: Path) -> int | None:
    """How many threads the run in ``folder`` has had, if that is known."""
    return _document(folder / MANIFEST).get("threads")


def unfinished(out: Path, plan: Plan) -> Path | None:
    """The newest run under ``out`` of the plan's name and configuration, if it can and need go on.

    What a run reports to does not count as configuration.  A run can go on if it has a checkpoint,
    and need not if it is finished.
    """
    wanted = _fixed(tomli.loads(tomli_w.dumps(dict(plan.resolved))))
    found = [f for f in out.glob(f"{plan.run.name}-*") if (f / RESOLVED).is_file()]
    for folder in sorted(found, reverse=True):  # those of one name differ in the time first
        if _fixed(tomli.loads((folder / RESOLVED).read_text(encoding="utf-8"))) == wanted:
            over = summary_of(folder).get("exit_reason") == "finished"
            return None if over or newest(folder / CHECKPOINTS) is None else folder
    return None


def _fixed(resolved: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resolved.items() if key != "report"}


def _document(path: Path) -> Mapping[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Nobody else trains in ``folder`` meanwhile; raises ``UsageError`` if somebody does.

    The claim is a lock on ``config.toml``, which ends with the process, however it ends.
    """
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two processes apart
        yield
        return
    handle = os.open(folder / CONFIG, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{folder} is in use: another process trains in it") from error
        yield
    finally:
        os.close(handle)
