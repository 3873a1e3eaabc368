"""A sweep before it starts: the table ``[sweep]`` read, and the configurations of its trials checked."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from curvlab.config import build
from curvlab.config.builder import Builder
from curvlab.config.layers import Layers
from curvlab.config.tree import Node, plain
from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Bounds, Natural
from curvlab.registry.loader import installed
from curvlab.sweeps.optional import KINDS, Kind, Named, named
from curvlab.trials.placement import Placement
from curvlab.trials.space import PRIMES, Point, Space, at_point, run_faults

#: tables of a sweep's files that are not part of a run's configuration
SWEEP, EXECUTOR = "sweep", "executor"
#: keys of ``[sweep]`` that are read apart
_APART = ("over", "sampler", "pruner")
#: so many faults are enough to work on
_ENOUGH = 20


#: the numbers of trials have four digits
MOST_TRIALS = 10_000
Trials = Annotated[int, Bounds(least=1, most=MOST_TRIALS)]


@dataclass(frozen=True)
class SweepSettings:
    """The table ``[sweep]``, beside its ranges ``over`` and Optuna's ``sampler`` and ``pruner``."""

    #: "grid": every combination; "halton": quasirandom points; "optuna": points that Optuna proposes
    search: Literal["grid", "halton", "optuna"] = "grid"
    trials: Trials | None = None  #: how many trials; a grid has as many as it has combinations
    seed: Natural = 0  #: of the points that are drawn


@dataclass(frozen=True)
class Sweep:
    """Everything a sweep is made from.  ``base`` is the configuration that its trials have in common.

    ``metric`` is what the task is judged by.  ``sampler`` and ``pruner`` are classes of Optuna with their
    arguments.
    """

    name: str
    base: Layers
    space: Space
    settings: SweepSettings
    placement: Placement
    sampler: Named
    pruner: Named
    made_from: dict[str, Any]
    metric: str = ""
    more_is_better: bool = False

    @classmethod
    def of(cls, layers: Layers, name: str, jobs: int | None = None) -> Sweep:
        """From merged files; raises ``ConfigError`` with every fault, each at its file and line.

        Every point of a grid is checked; in other searches every listed value and both ends of every
        interval.  ``name`` is the sweep's if ``run.name`` is not given; in it, characters that a folder's
        name cannot have become "-".
        """
        faults: list[Fault] = []
        table = layers.tree.table.get(SWEEP)
        if table is None or not table.is_table:
            hint = 'add [sweep.over] with a range, for example "method.lr" = [1e-3, 1e-2]'
            raise ConfigError((table or layers.tree).fault("table [sweep] is missing", hint, SWEEP))
        settings = _settings(table, faults)
        space = _space(table, faults)
        sampler, pruner = (_named(table, kind, faults) for kind in KINDS)
        placement = Placement.of(layers.tree.table.get(EXECUTOR), jobs, faults)
        if settings is not None:
            faults += _search_faults(table, settings, space)
        base = Layers(layers.tree.without(SWEEP, EXECUTOR), layers.given)
        faults += run_faults(base.tree)
        run = base.data.get("run")
        given = run.get("name") if isinstance(run, dict) else None
        if faults or settings is None:
            raise ConfigError(*faults)
        found = cls(
            name=str(given or re.sub(r"[^\w.+-]+", "-", name)),
            base=base,
            space=space,
            settings=settings,
            placement=placement,
            sampler=sampler,
            pruner=pruner,
            made_from=plain(layers.tree.without(EXECUTOR)),
        )
        return found._checked()

    def _checked(self) -> Sweep:
        """The sweep with its metric; raises ``ConfigError`` for what any checked trial has."""
        faults: dict[Fault, None] = {}
        judged: tuple[str, bool] | None = None
        for point in self.points() if self.settings.search == "grid" else self.space.samples():
            merging: list[Fault] = []
            try:
                layers = at_point(self.base, point, f"{self.name}-0000", merging)
                if merging:
                    raise ConfigError(*merging)
                judged = build(layers).task.judged_by
            except ConfigError as error:
                faults.update(dict.fromkeys(error.faults))
            if len(faults) >= _ENOUGH:
                break
        if faults or judged is None:
            raise ConfigError(*faults)
        return replace(self, metric=judged[0], more_is_better=judged[1])

    @property
    def count(self) -> int:
        """How many trials there are at most."""
        if self.settings.search == "grid":
            combinations = self.space.combinations
            assert combinations is not None, "a grid without points was refused"
            return combinations
        assert self.settings.trials is not None, "a search without a number of trials was refused"
        return self.settings.trials

    def points(self) -> Iterator[Point]:
        """The points of a search that does not learn from its trials."""
        if self.settings.search == "grid":
            return self.space.grid()
        return itertools.islice(self.space.halton(self.count, self.settings.seed), self.count)

    def folder(self, out: Path | None) -> Path:
        """Where the trials' runs are."""
        return Path("sweeps") / self.name if out is None else out


def _settings(table: Node, faults: list[Fault]) -> SweepSettings | None:
    builder = Builder(installed())
    built = builder.record(table.without(*_APART), SweepSettings, SWEEP)
    faults += builder.faults.user
    return None if built is None else built.value


def _named(table: Node, kind: Kind, faults: list[Fault]) -> Named:
    search = table.table.get("search")
    return named(table.table.get(kind), kind, search is not None and search.value == "optuna", faults)


def _space(table: Node, faults: list[Fault]) -> Space:
    over = table.table.get("over")
    if over is None:
        hint = 'add [sweep.over] with a range, for example "method.lr" = [1e-3, 1e-2]'
        faults.append(table.fault("the ranges are missing", hint, "sweep.over"))
        return Space({})
    found = Space.of(over, faults)
    if not found.ranges and not faults:
        faults.append(over.fault("there is no range", 'for example "method.lr" = [1e-3, 1e-2]'))
    return found


def _search_faults(table: Node, settings: SweepSettings, space: Space) -> Iterator[Fault]:
    """What does not go with the kind of search."""
    search, trials = settings.search, table.table.get("trials")
    if search == "grid":
        if trials is not None:
            yield trials.fault(
                "a grid has as many trials as combinations", 'remove trials, or set search = "halton"'
            )
        for key, interval in space.without_points.items():
            yield interval.node.fault(f"{key}: a grid needs to know how many values", "add points = N")
        if (space.combinations or 0) > MOST_TRIALS:
            what = f"the grid has {space.combinations} combinations, at most {MOST_TRIALS} are allowed"
            yield table.table.get("over", table).fault(what, 'use fewer values, or search = "halton"')
    elif trials is None:
        yield table.fault(f"the number of trials of {search} is missing", "add trials = N", "sweep.trials")
    if search == "halton" and len(space.ranges) > len(PRIMES):
        yield table.fault(f"halton takes at most {len(PRIMES)} keys, got {len(space.ranges)}")
