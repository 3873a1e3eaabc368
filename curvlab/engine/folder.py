"""A run's folder as the engine needs it: made once, never overwritten, used by one process at a time.

What is logged into it is a reporter's business; checkpoints are ``checkpoint.py``'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from curvlab.engine import checkpoint
from curvlab.engine.plan import Plan
from curvlab.errors import ConfigError, Fault, RunFolderError, UsageError
from curvlab.files import read_document, reading, require_unmoved, write_atomically, writing

CONFIG, RESOLVED, MANIFEST = "config.toml", "resolved.toml", "manifest.json"
METRICS, SUMMARY, CHECKPOINTS = "metrics.jsonl", "summary.json", "checkpoints"

#: seconds to wait for a lock: `curvlab runs` takes it for an instant to see whether a run is in progress
_PATIENCE = 0.2
#: the first line of ``resolved.toml``: the CRC-32 of the bytes that follow it
_SEAL = "# crc32 {:08x} of all that follows; to change the run, use `curvlab resume RUN --set key=value`\n"
_SEALED = re.compile(rb"# crc32 ([0-9a-f]{8})\b[^\n]*\n")


def create(out: Path, plan: Plan) -> Path:
    """A new folder ``out/<name>-<UTC time>-<hash>`` with ``config.toml`` and ``resolved.toml`` in it.

    The hash is that of the resolved configuration.  Two runs of one configuration in one second wait for
    each other's name: no folder is ever used twice.
    """
    resolved = _as_toml(plan)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plan.resolved, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    while True:
        now = datetime.now(timezone.utc)
        folder = out / f"{plan.run.name}-{now:%Y%m%dT%H%M%SZ}-{digest}"
        with writing(folder):
            try:
                folder.mkdir()
                break
            except FileExistsError:
                time.sleep(1.0 - now.microsecond / 1e6)
    try:
        write_atomically(folder / CONFIG, plan.given)
        write_atomically(folder / RESOLVED, resolved)
    except RunFolderError:
        for name in (CONFIG, RESOLVED):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
        raise
    return folder


def write_resolved(folder: Path, plan: Plan) -> None:
    """Write ``resolved.toml``; on resume, with the settings that were changed."""
    write_atomically(folder / RESOLVED, _as_toml(plan))


def resolved_of(folder: Path) -> str:
    """The text of ``resolved.toml``; raises ``RunFolderError`` if it is not what was written.

    A file of an older curvlab has no checksum and is taken as it is.
    """
    path = folder / RESOLVED
    with reading(path):
        data = path.read_bytes()
    seal = _SEALED.match(data)
    if seal and int(seal.group(1), 16) != zlib.crc32(data[seal.end() :]):
        raise RunFolderError(
            f"{path} does not match its checksum, because it is damaged or was edited; "
            "restore it. To change the run, use `curvlab resume RUN --set key=value`"
        )
    try:
        text = data.decode()
        tomli.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error}; restore it, or start a new run") from error
    return text


def _as_toml(plan: Plan) -> str:
    text = tomli_w.dumps(dict(plan.resolved))
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        value = text[max(0, error.start - 20) : error.end + 20]
        raise ConfigError(
            Fault(f"a value is not UTF-8, and TOML must be: {value!r}", hint="rename the file or folder")
        ) from error
    return _SEAL.format(zlib.crc32(data)) + text


def summary_of(folder: Path) -> Mapping[str, Any]:
    """The content of ``summary.json``; empty if there is none."""
    return read_document(folder / SUMMARY, "delete it; the run writes a new one when it ends")


def threads_of(folder: Path) -> Any:
    """How many threads the manifest says that the run in ``folder`` has had, if it says that."""
    manifest = read_document(folder / MANIFEST, "delete it; the next `curvlab resume` writes a new one")
    return manifest.get("threads")


def unfinished(out: Path, plan: Plan) -> Path | None:
    """The newest run under ``out`` of the plan's name and configuration, if it can and need go on.

    What a run reports to does not count as configuration.  A run can go on if it has a checkpoint,
    and need not if it is finished.
    """
    wanted = _fixed(tomli.loads(tomli_w.dumps(dict(plan.resolved))))
    with reading(out):
        found = [f for f in out.glob(f"{plan.run.name}-*") if (f / RESOLVED).is_file()]
    for folder in sorted(found, reverse=True):  # those of one name differ in the time first
        if _fixed(tomli.loads(resolved_of(folder))) == wanted:
            over = summary_of(folder).get("exit_reason") == "finished"
            return folder if not over and checkpoint.exist(folder / CHECKPOINTS) else None
    return None


def _fixed(resolved: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resolved.items() if key != "report"}


@contextmanager
def claimed(folder: Path) -> Iterator[Callable[[], None]]:
    """No other process trains in ``folder`` meanwhile; raises ``UsageError`` if one does.

    The claim is a lock on ``config.toml``, which ends with the process, however it ends.  Gives a check that
    raises ``RunFolderError`` if the folder is not in its place any more.
    """
    path = folder / CONFIG
    with writing(path):
        handle = os.open(path, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield partial(require_unmoved, handle, path)
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nothing keeps two processes apart
        return
    patient_until = time.monotonic() + _PATIENCE
    with writing(folder / CONFIG):
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() >= patient_until:
                    raise UsageError(
                        f"{folder} is in use: another process trains in it; wait for it, or stop it"
                    ) from error
            time.sleep(_PATIENCE / 20)
