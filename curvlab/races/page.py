"""The page of a race: the page of a comparison, with the standings and performance profiles above it."""

from __future__ import annotations

import math
from typing import Any

from curvlab.comparing.page import Section
from curvlab.comparing.page import page as comparison_page
from curvlab.pages.page import asset
from curvlab.races.profile import share_within
from curvlab.races.standings import Standings
from curvlab.races.words import COLUMNS, heading, profile_table, task_table

#: how far to the right of the last jump a profile is drawn
_BEYOND = 1.25


def page(found: Standings, title: str) -> str:
    """The page's text; it contains all it needs."""
    section = Section(asset("curvlab.races", "race.html"), asset("curvlab.races", "race.js"), _data(found))
    return comparison_page(found.comparison, found.by, title, section)


def _data(found: Standings) -> dict[str, Any]:
    columns, rows = profile_table(found)
    return {
        "by": found.by,
        "level": found.level,
        "tasks": [
            {
                "heading": heading(task),
                "columns": list(COLUMNS[1:]),
                "rows": [row[1:] for row in task_table(task, found.level)],
            }
            for task in found.tasks
        ],
        "profile": {"columns": columns, "rows": rows, **_curves(found)},
    }


def _curves(found: Standings) -> dict[str, Any]:
    """Where any profile jumps, and each profile there."""
    jumps = {ratio for own in found.ratios.values() for ratio in own if math.isfinite(ratio)} | {1.0}
    factors = [*sorted(jumps), max(jumps) * _BEYOND]
    shares = {name: [share_within(factor, own) for factor in factors] for name, own in found.ratios.items()}
    return {"factors": factors, "curves": [{"name": name, "shares": own} for name, own in shares.items()]}
