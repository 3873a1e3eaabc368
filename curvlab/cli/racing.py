"""``curvlab race``: methods on tasks with equal budgets.  Nothing imports torch before the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvlab.cli.options import AsJson, Jobs, Quiet, Settings
from curvlab.cli.output import complain, print_json, print_table, print_text
from curvlab.cli.warned import warned_once

if TYPE_CHECKING:
    from curvlab.comparing.record import Record
    from curvlab.races.race import Race
    from curvlab.races.standings import Standings
    from curvlab.trials.trial import Trial

#: the page's file in the race's folder
PAGE = "race.html"


def race(
    file: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…",
            help="TOML files, with tables [race], [tasks] and [methods]; later files override earlier ones.",
            show_default=False,
        ),
    ],
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The folder of runs and page. [default: races/NAME]"),
    ] = None,
    jobs: Jobs = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every run and count them, without training.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Race methods on tasks: tune each with an equal number of settings, then measure on other seeds.

    Prints steps, examples and seconds to each task's target, with a test of significance and performance
    profiles, and writes a page. Run the same command again to continue a race that was stopped.
    """
    from curvlab.config import load
    from curvlab.files import write_atomically
    from curvlab.races.page import page
    from curvlab.races.race import Race
    from curvlab.races.running import carry_out

    with warned_once(quiet=quiet):
        found = Race.of(load(file, settings or ()), file[-1].stem, jobs)
        folder = found.folder(out)
        if dry_run:
            _show_plan(found, folder, as_json)
            return
        told = _Progress(found, quiet)
        result = carry_out(found, folder, told.ended)
    write_atomically(folder / PAGE, page(result, f"Race: {found.name}"))
    if not quiet:
        _show(result, folder, as_json)


class _Progress:
    """A line on standard error for each run that ended."""

    def __init__(self, race: Race, quiet: bool) -> None:
        self._left = sum(race.runs)
        self._all, self._quiet, self._race = self._left, quiet, race

    def ended(self, phase: str, trial: Trial, record: Record) -> None:
        """A run of the phase ended."""
        from curvlab.comparing.words import short
        from curvlab.races.race import chosen_in_words
        from curvlab.races.running import cost

        self._left -= 1
        if self._quiet:
            return
        task = trial.below.partition("/")[0]
        track = next(one for one in self._race.tracks if one.name == task)
        by = self._race.settings.by
        words = [f"{self._all - self._left}/{self._all}", phase, trial.below, trial.name]
        words += [chosen_in_words(trial.settings), record.outline.state]
        complain("  ".join([*filter(None, words), f"{short(cost(record, track, by))} {by} to the target"]))


def _show_plan(found: Race, folder: Path, as_json: bool) -> None:
    from curvlab.trials.space import values_of

    tuning, final = found.runs
    if as_json:
        methods = {one.name: [values_of(point) for point in one.points] for one in found.entrants}
        print_json({"race": str(folder), "methods": methods, "tuning_runs": tuning, "final_runs": final})
        return
    rows = [
        (track.name, str(track.target), one.name, str(len(one.points)))
        for track in found.tracks
        for one in found.entrants
    ]
    print_table(("task", "target", "method", "settings to try"), rows)
    print_text(f"\n{tuning} runs to choose settings and {final} runs to measure, in {folder}")


def _show(result: Standings, folder: Path, as_json: bool) -> None:
    from curvlab.races.words import COLUMNS, document, heading, profile_table, task_table

    if as_json:
        print_json({"race": str(folder), **document(result), "page": str(folder / PAGE)})
    else:
        for task in result.tasks:
            print_text(heading(task))
            print_table(COLUMNS, task_table(task, result.level))
            print_text("")
        if len(result.tasks) > 1:
            print_text(f"Share of tasks within a factor of the least {result.by}")
            print_table(*profile_table(result))
            print_text("")
        print_text(str(folder / PAGE))
    for run in result.comparison.troubled:
        complain(f"{run.path}: {run.state}: {run.trouble}")
    for note in result.comparison.notes:
        complain(f"note: {note}")
