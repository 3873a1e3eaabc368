"""Reading and writing files so that what goes wrong is said in words, and a file is whole or as it was."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curvlab.errors import RunFolderError

#: what the operating system's error means here, and what to do about it
_ADVICE: Mapping[int, str] = {
    errno.ENOSPC: "the disk is full; make room, or write elsewhere with --out",
    errno.EDQUOT: "the disk quota is used up; make room, or write elsewhere with --out",
    errno.EFBIG: "the file would be larger than this process may write; raise the limit (`ulimit -f`)",
    errno.EROFS: "the file system is read-only; write elsewhere with --out",
    errno.EACCES: "permission denied; change the permissions, or choose another folder",
    errno.EPERM: "operation not permitted; change the permissions, or choose another folder",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.EEXIST: "a file is in the place of a folder; choose another folder",
    errno.ENOTDIR: "a file is in the place of a folder; choose another folder",
    errno.EISDIR: "a folder is in the place of a file; move it away",
    errno.ENOENT: "no such file or folder; it may have been moved or deleted",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, an ``OSError`` becomes a ``RunFolderError``: "PATH cannot be written: …"."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(_in_words(error, path, "written")) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, an ``OSError`` becomes a ``RunFolderError``: "PATH cannot be read: …"."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(_in_words(error, path, "read")) from error


def read_document(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file, empty if there is no file.

    Raises ``RunFolderError``, with ``remedy`` at its end, if the file holds anything else.
    """
    with reading(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return {}
    try:
        return parsed_object(data)
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged: {error}; {remedy}") from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a ``.jsonl`` file, none if there is no file; a torn last line is passed over.

    Raises ``RunFolderError`` naming a line that is damaged.
    """
    with reading(path):
        whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(whole, start=1):
        try:
            yield parsed_object(line)
        except ValueError as error:
            raise RunFolderError(f"{path}:{number}: not a JSON object: {error}") from error


def parsed_object(data: bytes) -> dict[str, Any]:
    """The JSON object that ``data`` is; raises ``ValueError`` for any other text."""
    try:
        found = json.loads(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("its tables are nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {_kind(found)}")
    return found


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file in one move: readers see the old content or the new; raises ``RunFolderError``.

    A path that is not UTF-8, quoted in the text, is written with backslash escapes.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            partial.write_bytes(data)
            flush(partial)
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)  # half a file would hold on to the room that is lacking
            raise
        flush(path.parent)


def flush(path: Path) -> None:
    """Make sure that a file's bytes, or a folder's entries, are on the disk; raises ``OSError``."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders; its renames are journalled
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_unmoved(handle: int, path: Path) -> None:
    """Raise ``RunFolderError`` if the file open as ``handle`` is not the one at ``path`` any more."""
    try:
        there = os.path.samestat(os.fstat(handle), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        there = False
    if not there:
        raise RunFolderError(
            f"{path} was moved, replaced or deleted while the run was training, so nothing more is written; "
            "put the run's folder back, or resume it in its new place"
        )


def require_temporary_folder() -> None:
    """Raise ``RunFolderError`` if no folder for temporary files can be written; torch needs one."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise RunFolderError(
            "no folder for temporary files can be written, and torch needs one: the disk is full or "
            "read-only, or a limit (`ulimit -f`) forbids it; make room, or set TMPDIR to a folder elsewhere"
        ) from error


def _in_words(error: OSError, path: Path, done: str) -> str:
    words = _ADVICE.get(error.errno or 0) or error.strerror or str(error)
    return f"{path} cannot be {done}: {words}"


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
