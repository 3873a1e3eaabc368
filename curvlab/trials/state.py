"""The file that says what a folder of trials was made from, so that it is continued by nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curvlab.comparing.configurations import flat
from curvlab.errors import UsageError
from curvlab.files import read_document, write_atomically, writing

#: the most differences that a message lists
_LISTED = 5


def claim_folder(folder: Path, file: str, made_from: Mapping[str, Any], free: tuple[str, ...]) -> None:
    """Make ``folder`` with ``file`` in it, or go on in one that was made from the same configuration.

    ``free`` are dotted keys that may change in between.  Raises ``UsageError`` naming the keys that differ.
    """
    path = folder / file
    mine = {key: value for key, value in flat(_as_json(made_from)).items() if not _is_free(key, free)}
    before = read_document(path, "delete it to begin anew with the runs of this folder").get("made_from")
    if before is None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"made_from": _as_json(made_from)}, indent=1) + "\n")
        return
    theirs = {key: value for key, value in flat(before).items() if not _is_free(key, free)}
    differing = [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]
    if differing:
        listed = "; ".join(f"{k} was {theirs.get(k)!r} and is {mine.get(k)!r}" for k in differing[:_LISTED])
        more = f"; and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
        raise UsageError(
            f"{folder} holds runs of another configuration: {listed}{more}; choose another folder with --out"
        )


def _is_free(key: str, free: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in free)


def _as_json(data: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(data, default=str))
