"""Runs of one configuration, whatever their seeds, and what tells one configuration from another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from curvlab.comparing.outline import Outline

#: settings that do not make another configuration: names, seeds, and what is told and kept of a run
NEUTRAL = ("run.name", "run.seed", "run.log_every", "run.checkpoint_every", "run.keep", "report")

#: the longest value that a label shows
_LONGEST = 40


def by_configuration(runs: Sequence[Outline]) -> list[list[Outline]]:
    """Runs in groups that differ in ``NEUTRAL`` settings alone, in the order of their first runs."""
    groups: dict[str, list[Outline]] = {}
    for run in runs:
        telling = {key: value for key, value in flat(run.resolved).items() if not _is_neutral(key)}
        groups.setdefault(json.dumps(telling, sort_keys=True, default=str), []).append(run)
    return list(groups.values())


def differences(configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each configuration its settings that are not the same in all, by dotted key.

    ``None`` stands for a key that a configuration does not have and others do.  ``NEUTRAL`` settings are left
    out.  A table whose ``use`` differs counts by that alone: the settings of different parts are not
    compared, except among the configurations with the same part.
    """
    found: list[dict[str, Any]] = [{} for _ in configurations]
    _add_differences({k: flat(c) for k, c in enumerate(configurations)}, frozenset(), found)
    return found


def _add_differences(
    tables: Mapping[int, Mapping[str, Any]], split: frozenset[str], found: Sequence[dict[str, Any]]
) -> None:
    """Add to ``found`` what differs among ``tables``; those at the keys ``split`` are split already."""
    keys = [
        key for key in dict.fromkeys(k for table in tables.values() for k in table) if not _is_neutral(key)
    ]
    differing = [key for key in keys if len({_text(table.get(key)) for table in tables.values()}) > 1]
    parts = [key for key in differing if key.endswith(".use") and key not in split]
    outermost = min(parts, key=lambda key: key.count("."), default=None)
    below = None if outermost is None else outermost.removesuffix("use")
    for key in differing:
        if below is None or key == outermost or not key.startswith(below):
            for k, table in tables.items():
                found[k][key] = table.get(key)
    if outermost is None or below is None:
        return
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for k, table in tables.items():
        inner = {key: value for key, value in table.items() if key.startswith(below)}
        groups.setdefault(_text(table.get(outermost)), {})[k] = inner
    for group in groups.values():
        _add_differences(group, split | {outermost}, found)


def labels(runs: Sequence[Outline]) -> list[str]:
    """A short text for each configuration: its method, and what differs from others of the task.

    The words are those that the user gave where these tell the configurations apart, and otherwise those
    of the resolved configuration.
    """
    given = _labels(runs, [run.given for run in runs])
    resolved = _labels(runs, [run.resolved for run in runs])
    seen = Counter(given)
    return [mine if seen[mine] == 1 else spelled for mine, spelled in zip(given, resolved, strict=True)]


def _labels(runs: Sequence[Outline], configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = []
    for run, differing in zip(runs, differences(configurations), strict=True):
        words = [
            f"{key.removeprefix('method.')}={in_words(value)}"
            for key, value in differing.items()
            if value is not None and key not in ("method", "method.use", "task", "task.use")
        ]
        shown.append(" ".join([run.method, *words]))
    return shown


def in_words(value: Any) -> str:
    """A setting's value on one line, without its middle if it is long."""
    text = value if isinstance(value, str) else _text(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 3 :]}"


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """Every value of a configuration that is not a table or an array of tables, by its dotted key."""
    if isinstance(data, Mapping):
        items = data.items()
    elif isinstance(data, list) and any(isinstance(entry, Mapping) for entry in data):
        items = {str(k): entry for k, entry in enumerate(data)}.items()
    else:
        return {path: data}
    found: dict[str, Any] = {}
    for key, value in items:
        found.update(flat(value, f"{path}.{key}" if path else str(key)))
    return found


def _is_neutral(key: str) -> bool:
    return any(key == neutral or key.startswith(neutral + ".") for neutral in NEUTRAL)


def _text(value: Any) -> str:
    return "–" if value is None else json.dumps(value, default=str, ensure_ascii=False)
