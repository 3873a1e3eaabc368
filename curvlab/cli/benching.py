"""The history of benchmarks: ``bench compare`` and ``bench history``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curvlab.cli.options import AsJson
from curvlab.cli.output import complain, print_json, print_table, print_text
from curvlab.errors import NoResults, Regression, ResultsError, UsageError

if TYPE_CHECKING:
    from curvlab.bench.records import Result, Results

app = typer.Typer(no_args_is_help=True, help="Benchmarks over commits.", rich_markup_mode=None)

Where = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="PATH",
        help="asv's folder of results, or a file that `bench history --json` printed.",
        show_default=False,
    ),
]
Machine = Annotated[str, typer.Option("--machine", metavar="NAME", help="Use the results of this machine.")]
Every = Annotated[bool, typer.Option("--all", help="Also list benchmarks that did not change.")]


@app.command()
def compare(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="The commit to compare with, by any name that git knows.", show_default=False
        ),
    ],
    head: Annotated[str, typer.Argument(metavar="HEAD", help="The commit to compare.", show_default=False)],
    results: Where = None,
    machine: Machine = "",
    times: Annotated[
        bool, typer.Option("--times", help="Measure both commits again in turns, times included.")
    ] = False,
    bench: Annotated[
        str,
        typer.Option(
            "--bench", metavar="REGEX", help="Only benchmarks whose name matches.", show_default=False
        ),
    ] = "",
    every: Every = False,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            metavar="FILE",
            help="Append the comparison to this file, as a table in Markdown.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What changed between two commits; exit code 6 if a benchmark got worse.

    Commits without results are measured by asv, if it is installed.  What asv_benchmarks/intended.toml gives
    a reason for is no regression.
    """
    from curvlab.bench.comparison import Verdict, regressions
    from curvlab.bench.comparison import compare as compared
    from curvlab.bench.tables import COMPARISON, comparison_row, comparison_values, in_markdown, summary

    named = _pattern(bench)
    known, before, after = _pair((base, head), results, machine, times=times, bench=bench)
    changes = [change for change in compared(before, after, known) if named.search(str(change.key))]
    if bench and not changes:
        raise UsageError(f"--bench {bench}: no benchmark of these commits is called so")
    shown = [change for change in changes if every or change.verdict is not Verdict.EQUAL]
    if as_json:
        rows = [comparison_values(known, change) for change in shown]
        print_json({"base": before.commit, "head": after.commit, "changes": rows})
    elif shown:
        print_table(COMPARISON, [comparison_row(known, change) for change in shown])
    else:
        print_text("nothing changed")
    told = summary(before, after, changes)
    complain(told)
    if markdown is not None:
        table = in_markdown(told, COMPARISON, [comparison_row(known, change) for change in shown])
        _write(markdown, table, "--markdown", append=True)
    worse = regressions(changes)
    if worse:
        names = "\n".join(f"  {change.key}" for change in worse)
        raise Regression(f"{len(worse)} of {len(changes)} benchmarks got worse:\n{names}")


@app.command()
def history(
    results: Where = None,
    machine: Machine = "",
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write an HTML page that works offline.", show_default=False
        ),
    ] = None,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="Only this method.")] = "",
    family: Annotated[str, typer.Option("--family", metavar="NAME", help="Only this structure.")] = "",
    measure: Annotated[
        str, typer.Option("--measure", metavar="NAME", help="Only this measure: flops, time, …")
    ] = "",
    every: Every = False,
    as_json: AsJson = False,
) -> None:
    """List every benchmark over the commits that have results: as a table, JSON or a page."""
    from curvlab.bench.compact import document
    from curvlab.bench.history import Filter, narrowed, series
    from curvlab.bench.page import page
    from curvlab.bench.tables import HISTORY, history_row

    known = narrowed(_read(results, machine), Filter(method, family, measure))
    found = series(known)
    if html is not None:
        size = _write(html, page(known), "--html")
        complain(f"{html}: {len(found)} series of {len(known.results)} commits, {size / 1e6:.2f} MB")
    if as_json:
        print_json(document(known))
    elif html is None:
        shown = [one for one in found if every or one.events]
        print_table(HISTORY, [history_row(known, one) for one in shown])
        complain(f"{len(known.results)} commits; {len(shown)} of {len(found)} series shown")


def _read(results: Path | None, machine: str) -> Results:
    """All results, in git's order; what was intended is the project's, or the file's if there is none."""
    from curvlab.bench.commits import described
    from curvlab.bench.compact import read
    from curvlab.bench.intended import read_intended
    from curvlab.bench.measuring import required

    here = Path.cwd()
    found = read(required(here).results if results is None else results, machine)
    try:
        project = required(here)
    except UsageError:  # --results of another place, read where no project is
        return described(found, here)
    return described(replace(found, intended=read_intended(project.intended) or found.intended), here)


def _pair(
    revisions: tuple[str, str], results: Path | None, machine: str, *, times: bool, bench: str
) -> tuple[Results, Result, Result]:
    """All results, and those of two commits, which are measured if need be."""
    from curvlab.bench.commits import resolve, results_of
    from curvlab.bench.measuring import measured

    here = Path.cwd()
    known = _read(results, machine) if results is not None else _own(machine)
    commits = [resolve(revision, here, known) for revision in revisions]
    missing = commits if times else [c for c in commits if not _is_measured(known, c, results is None)]
    if known is None or missing:
        measured(here, list(dict.fromkeys(missing)), machine, times=times, run=results is None, bench=bench)
        known = _own(machine)
        if known is None:
            raise ResultsError("asv ended without a result; what it printed above says why")
    before, after = results_of(known, commits)
    return known, before, after


def _own(machine: str) -> Results | None:
    """The project's results so far; ``None`` where nothing was measured yet, or not on this machine."""
    from curvlab.bench.measuring import required

    folder = required(Path.cwd()).results
    if machine and folder.is_dir() and not (folder / machine).is_dir():
        return None
    try:
        return _read(None, machine)
    except NoResults:
        return None


def _pattern(text: str) -> re.Pattern[str]:
    """A regular expression; raises ``UsageError`` if it is none."""
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"--bench {text}: no regular expression: {error}") from error


def _is_measured(known: Results | None, commit: str, own: bool) -> bool:
    """Whether nothing is to be measured; of a project's ``own`` results every deterministic one is wanted."""
    if known is None:
        return False
    return known.whole(commit) if own else bool(known.of(commit))


def _write(path: Path, text: str, option: str, *, append: bool = False) -> int:
    """The bytes written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if append else "wb") as file:
            return file.write(text.encode())
    except OSError as err:
        raise UsageError(f"{option} {path}: {err.strerror}") from err
