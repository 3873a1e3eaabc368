"""The result of a race: per task the methods in order, with the significance of the first one's lead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curvlab.comparing.comparison import Comparison, Row, TaskComparison, machine_notes, order
from curvlab.comparing.record import Over, Record
from curvlab.races.profile import ratios
from curvlab.races.significance import holm, rank_sum_p

if TYPE_CHECKING:
    from curvlab.races.race import Race, Track

#: an axis as a field of ``Reached``
FIELDS: Mapping[Over, str] = {"steps": "step", "examples": "examples", "seconds": "seconds"}


@dataclass(frozen=True)
class Place:
    """A method on a task.

    ``p`` is the p-value that the leader's costs are smaller than this method's, adjusted for the number of
    comparisons on the task; ``None`` for the leader, and if no method reached the target.
    """

    method: str
    settings: Mapping[str, Any]
    row: Row
    p: float | None

    def cost(self, by: Over) -> float:
        """The median over seeds; infinite if half of the runs or more did not reach the target."""
        spread = self.row.to_target(by)
        return math.inf if spread is None else spread.median


@dataclass(frozen=True)
class TaskStandings:
    """A task's methods, the leader first."""

    comparison: TaskComparison
    places: Sequence[Place]


@dataclass(frozen=True)
class Standings:
    """All tasks.  ``ratios`` has, per method, its cost over the least on each task; ``by`` is the cost."""

    by: Over
    level: float
    tasks: Sequence[TaskStandings]
    ratios: Mapping[str, Sequence[float]]
    comparison: Comparison


def standings(
    race: Race,
    records: Mapping[tuple[str, str], Sequence[Record]],
    settings: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Standings:
    """From the measured runs and the chosen settings by task and method."""
    by = race.settings.by
    tasks = [_task(race, track, records, settings) for track in race.tracks]
    costs = {
        entrant.name: [next(p for p in task.places if p.method == entrant.name).cost(by) for task in tasks]
        for entrant in race.entrants
    }
    runs = [record for group in records.values() for record in group]
    notes = machine_notes(runs)
    if race.placement.jobs > 1:
        notes.append(f"{race.placement.jobs} runs were trained at a time: compare their seconds with care")
    troubled = [run.outline for run in runs if run.outline.trouble]
    comparison = Comparison([task.comparison for task in tasks], troubled, notes)
    return Standings(by, race.settings.level, tasks, ratios(costs), comparison)


def _task(
    race: Race,
    track: Track,
    records: Mapping[tuple[str, str], Sequence[Record]],
    settings: Mapping[tuple[str, str], Mapping[str, Any]],
) -> TaskStandings:
    target, by = track.target, race.settings.by
    rows = []
    for entrant in race.entrants:
        runs = records[track.name, entrant.name]
        reached = [run.reached(target) for run in runs]
        best = [run.best(target.metric, target.more_is_better) for run in runs]
        chosen = dict(settings[track.name, entrant.name])
        rows.append(Row(entrant.name, runs[0].outline.method, chosen, runs, reached, best))
    rows.sort(key=lambda row: order(row, by, target.more_is_better))
    comparison = TaskComparison(track.name, target.metric, target.more_is_better, target, True, rows)
    leader, others = rows[0], rows[1:]
    raw = (
        {row.label: rank_sum_p(_costs(leader, by), _costs(row, by)) for row in others} if leader.count else {}
    )
    p_values = holm(raw)
    return TaskStandings(
        comparison, [Place(row.label, row.differs, row, p_values.get(row.label)) for row in rows]
    )


def _costs(row: Row, by: Over) -> list[float]:
    return [math.inf if one is None else float(getattr(one, FIELDS[by])) for one in row.reached]
