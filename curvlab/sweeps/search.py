"""Carrying out a sweep: trials are proposed, trained, and their results told to what proposes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from curvlab.errors import Fault
from curvlab.sweeps.result import Result
from curvlab.sweeps.sweep import Sweep
from curvlab.trials.executors import fan_out
from curvlab.trials.space import Point, at_point, values_of
from curvlab.trials.state import claim_folder
from curvlab.trials.trial import Trial

#: what a folder of a sweep was made from
STATE = "sweep.json"
#: what may change when a sweep goes on: more trials, and how runs are reported
_FREE = ("sweep.trials", "report")


class Proposals(Protocol):
    """Where trials come from."""

    def trials(self) -> Iterator[Trial]:
        """The trials of the sweep in order, those of before included."""

    def tell(self, trial: Trial, result: Result) -> None:
        """Take in what came of a trial."""

    def refused(self) -> list[Result]:
        """Proposals that no run can have, which were not among the trials."""


class Listed:
    """A grid or a sequence: proposals that do not depend on results."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def trials(self) -> Iterator[Trial]:
        for number, point in enumerate(self._sweep.points()):
            yield trial_at(self._sweep, number, point)

    def tell(self, trial: Trial, result: Result) -> None:
        return None

    def refused(self) -> list[Result]:
        return []


def trial_at(sweep: Sweep, number: int, point: Point) -> Trial:
    """The trial of a number at a point."""
    faults: list[Fault] = []
    name = f"{sweep.name}-{number:04}"
    layers = at_point(sweep.base, point, name, faults)
    assert not faults, "a point was not checked"
    return Trial(name, layers, values_of(point))


def carry_out(sweep: Sweep, folder: Path, on_result: Callable[[Result], None]) -> list[Result]:
    """The results of all trials in ``folder``; those of an earlier call are read, not trained again.

    ``on_result`` gets each as it ends.  Raises ``UsageError`` if the folder holds another sweep, ``Stopped``
    after a signal, and what makes a trial fail other than divergence and lack of memory.
    """
    claim_folder(folder, STATE, sweep.made_from, _FREE)
    proposals = _proposals(sweep, folder)
    found = []
    for trial, run in fan_out(proposals.trials(), folder, sweep.placement):
        result = Result.of(trial, run)
        proposals.tell(trial, result)
        on_result(result)
        found.append(result)
    return [*found, *proposals.refused()]


def _proposals(sweep: Sweep, folder: Path) -> Proposals:
    if sweep.settings.search != "optuna":
        return Listed(sweep)
    from curvlab.sweeps.optuna_search import OptunaProposals

    return OptunaProposals(sweep, folder)
