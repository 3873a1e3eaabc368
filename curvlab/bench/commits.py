"""Names of commits: a branch, a tag or ``HEAD~2`` as the hash that results are kept under."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from curvlab.bench.intended import Intended
from curvlab.bench.records import Result, Results
from curvlab.errors import ResultsError, UsageError


def resolve(revision: str, folder: Path, results: Results | None) -> str:
    """The full hash that ``revision`` stands for; raises ``UsageError``.

    Git of ``folder`` is asked first; where there is none, or it does not know, the commits that have results.
    """
    found = _git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found:
        return found.strip()
    measured = {r.commit: r.subject for r in results.results} if results else {}
    matching = [commit for commit in measured if len(revision) >= 4 and commit.startswith(revision)]
    if len(matching) == 1:
        return matching[0]
    known = ", ".join(commit[:8] for commit in measured)
    have = f"commits with results: {known}" if known else "and no commit has results yet"
    raise UsageError(f'"{revision}" is no commit that git knows in {folder}; {have}')


def described(results: Results, folder: Path) -> Results:
    """The same with every commit's subject, and in the order of git's history, as far as git knows them.

    Commits of one second are otherwise in no order.  A change that was intended is one of the first commit
    with results that contains it.
    """
    lines = _git(folder, "log", "--all", "--topo-order", "--reverse", "--format=%H%x00%s").splitlines()
    subjects = dict(line.split("\0", 1) for line in lines if "\0" in line)
    place = {commit: k for k, commit in enumerate(subjects)}
    told = [replace(r, subject=subjects.get(r.commit, r.subject)) for r in results.results]
    if all(r.commit in place for r in told):
        told.sort(key=lambda r: place[r.commit])
    intended = [_measured(one, told, place) for one in results.intended]
    return replace(results, results=tuple(told), intended=tuple(one for one in intended if one))


def _measured(one: Intended, told: Sequence[Result], place: Mapping[str, int]) -> Intended | None:
    """The same at the first commit with results that is not before it; ``None`` where there is none yet."""
    own = next((r.commit for r in told if r.commit.startswith(one.commit)), None)
    if own is None:
        at = next((k for commit, k in place.items() if commit.startswith(one.commit)), len(place))
        own = next((r.commit for r in told if place.get(r.commit, -1) >= at), None)
    return None if own is None else replace(one, commit=own)


def results_of(results: Results, commits: Sequence[str]) -> list[Result]:
    """The latest result of each, all in one environment; raises ``ResultsError``.

    It is the environment that has most of them, the one used last among equals: numbers of different versions
    of torch do not compare.
    """
    used: dict[str, tuple[int, int]] = {}
    for result in results.results:
        count, date = used.get(result.environment, (0, 0))
        used[result.environment] = (count + (result.commit in commits), max(date, result.date))
    best = max(used, key=lambda name: used[name], default="")
    found = []
    for commit in commits:
        mine = [r for r in results.of(commit) if r.environment == best]
        if not mine:
            which = "results in another environment only" if results.of(commit) else "no results"
            known = ", ".join(dict.fromkeys(r.short for r in results.results))
            raise ResultsError(f"{commit[:8]} has {which} on {results.machine}; measured are {known}")
        found.append(mine[-1])
    return found


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
