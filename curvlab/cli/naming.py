"""What a run is called: by ``--name``, by ``--set run.name``, or by its file and what ``--set`` changed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

#: the tables whose settings make another experiment
_TELLING = ("method", "task", "sampler", "precision")

#: a folder's name has more after it, and a path has a greatest length
_LONGEST = 60


def name_override(config: Sequence[Path], settings: Sequence[str], name: str | None) -> list[str]:
    """``run.name=…`` for ``load``, or nothing if the name in the files stands.

    A name from a file describes what the file says; so what ``--set`` changes in the method, the task, the
    sampler or the precision is added to it: ``digits`` with ``method.structure=diagonal`` is
    ``digits-structure-diagonal``.
    """
    if name is not None:
        return [_assigned(name)]
    keys = [text.partition("=")[0].strip() for text in settings]
    words = [_words(text) for text in settings]
    changes = "-".join(word for word in words if word)[:_LONGEST].strip("-.")
    if "run.name" in keys or "run" in keys or not changes:
        return []
    from curvlab.config import load
    from curvlab.engine.plan import RunSettings

    run = load(config, settings).data.get("run", {})
    base = run.get("name", RunSettings.name) if isinstance(run, dict) else None
    return [_assigned(f"{base}-{changes}")] if isinstance(base, str) else []


def _words(setting: str) -> str:
    """``structure-diagonal`` for ``method.structure=diagonal``; the name alone for ``method.use=kfac``."""
    key, _, value = setting.partition("=")
    path = key.strip().split(".")
    if path[0] not in _TELLING:
        return ""
    said = re.sub(r"[^\w.+-]+", "-", value).strip("-").removeprefix("use-")
    return said if len(path) == 1 or path[-1] == "use" else f"{path[-1]}-{said}"


def _assigned(name: str) -> str:
    """As a TOML basic string, so that ``--name 3`` is a name and no number."""
    return f"run.name={json.dumps(name)}"
