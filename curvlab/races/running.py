"""Carrying out a race: runs that choose a setting per method and task, then runs that are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

from curvlab.comparing.outline import outline
from curvlab.comparing.record import Over, Record
from curvlab.errors import CurvlabError
from curvlab.races.race import Entrant, Race, Track
from curvlab.races.standings import FIELDS, Standings, standings
from curvlab.trials.executors import fan_out
from curvlab.trials.space import Point, values_of
from curvlab.trials.state import claim_folder
from curvlab.trials.trial import Trial

#: what a folder of a race was made from, and the folders of its runs
STATE, TUNING, FINAL = "race.json", "tuning", "final"
#: what may change when a race goes on
_FREE = ("report",)

#: a task and a method by name
Pair = tuple[str, str]


def carry_out(race: Race, folder: Path, on_run: Callable[[str, Trial, Record], None]) -> Standings:
    """The standings after all runs; those of an earlier call are read, not trained again.

    ``on_run`` gets the folder of the phase, the trial and its metrics as each run ends.  Raises
    ``UsageError`` if the folder holds another race, ``Stopped`` after a signal, and ``CurvlabError`` if the
    runs of a task do not have the metric of its target.
    """
    claim_folder(folder, STATE, race.made_from, _FREE)
    tuning = _runs(race, folder / TUNING, _tuning(race), on_run)
    chosen = {
        (track.name, entrant.name): _best(race, track, entrant, tuning)
        for track in race.tracks
        for entrant in race.entrants
    }
    final = _runs(race, folder / FINAL, _final(race, chosen), on_run)
    records = {
        pair: [final[f"{'/'.join(pair)}/{final_name(seed)}"] for seed in race.settings.seeds]
        for pair in chosen
    }
    return standings(race, records, {pair: values_of(point) for pair, point in chosen.items()})


def tuning_name(number: int, seed: int) -> str:
    """What a run that chooses a setting is called."""
    return f"setting{number:03}-seed{seed}"


def final_name(seed: int) -> str:
    """What a run that is measured is called."""
    return f"seed{seed}"


def _runs(
    race: Race, folder: Path, trials: Iterator[Trial], on_run: Callable[[str, Trial, Record], None]
) -> dict[str, Record]:
    """The metrics of each trial by its place and name."""
    targets = {track.name: track.target for track in race.tracks}
    found = {}
    for trial, run in fan_out(trials, folder, race.placement):
        record = Record.of(outline(run))
        target = targets[trial.below.partition("/")[0]]
        if record.metrics and record.outline.state == "finished" and target.metric not in record.metrics:
            raise CurvlabError(
                f"the target {target} cannot be reached: the run {run} has no metric {target.metric};"
                f" it has {', '.join(sorted(record.metrics))}"
            )
        found[f"{trial.below}/{trial.name}"] = record
        on_run(folder.name, trial, record)
    return found


def _tuning(race: Race) -> Iterator[Trial]:
    """The runs that choose a setting; none for a method with one setting."""
    for track in race.tracks:
        for entrant in race.entrants:
            for number, point in enumerate(entrant.points if len(entrant.points) > 1 else ()):
                for seed in race.settings.tuning_seeds:
                    yield race.trial(track, entrant, point, tuning_name(number, seed), seed)


def _final(race: Race, chosen: Mapping[Pair, Point]) -> Iterator[Trial]:
    """The runs that are measured."""
    for track in race.tracks:
        for entrant in race.entrants:
            for seed in race.settings.seeds:
                point = chosen[track.name, entrant.name]
                yield race.trial(track, entrant, point, final_name(seed), seed)


def _best(race: Race, track: Track, entrant: Entrant, tuning: Mapping[str, Record]) -> Point:
    """The setting with the least median cost to the target, then the best median value, then the first."""
    if len(entrant.points) == 1:
        return entrant.points[0]

    def order(number: int) -> tuple[float, float]:
        place = f"{track.name}/{entrant.name}/"
        runs = [tuning[place + tuning_name(number, seed)] for seed in race.settings.tuning_seeds]
        return median(cost(run, track, race.settings.by) for run in runs), median(
            _value(run, track) for run in runs
        )

    return entrant.points[min(range(len(entrant.points)), key=order)]


def cost(run: Record, track: Track, by: Over) -> float:
    """Steps, examples or seconds to the target, infinite if the run did not reach it."""
    reached = run.reached(track.target)
    return math.inf if reached is None else float(getattr(reached, FIELDS[by]))


def _value(run: Record, track: Track) -> float:
    """The best value of the target's metric, less being better; infinite if there is none."""
    best = run.best(track.target.metric, track.target.more_is_better)
    if best is None:
        return math.inf
    return -best[0] if track.target.more_is_better else best[0]
