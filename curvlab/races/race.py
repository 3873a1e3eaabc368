"""A race before it starts: its file read, and the configuration of every run checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from curvlab.comparing.target import Target
from curvlab.config import build
from curvlab.config.builder import Builder
from curvlab.config.layers import Layers
from curvlab.config.merge import merge
from curvlab.config.tree import Node, plain
from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Bounds, Natural
from curvlab.registry.loader import installed
from curvlab.trials.placement import Placement
from curvlab.trials.space import PRIMES, Point, Space, at_point, run_faults, values_of
from curvlab.trials.trial import Trial

#: tables of a race's file that are not part of every run's configuration
RACE, TASKS, METHODS, EXECUTOR = "race", "tasks", "methods", "executor"
#: what a task or a method may be called: the name of a folder
_NAME = re.compile(r"\w[\w.+-]*")
#: so many faults are enough to work on
_ENOUGH = 20


#: the numbers of settings have three digits
Budget = Annotated[int, Bounds(least=1, most=1000)]


@dataclass(frozen=True)
class RaceSettings:
    """The table ``[race]``."""

    budget: Budget  #: settings that each method may try on each task
    tuning_seeds: tuple[Natural, ...] = (0,)  #: of the runs that choose a setting
    seeds: tuple[Natural, ...] = (1, 2, 3, 4, 5)  #: of the runs that are measured
    by: Literal["steps", "examples", "seconds"] = "steps"  #: what the race is about
    seed: Natural = 0  #: of the points that are drawn
    level: Annotated[float, Bounds(above=0, below=1)] = 0.05  #: p-values at most this are marked


@dataclass(frozen=True)
class Track:
    """A task of a race: its part of the configuration, and the value that counts as reached."""

    name: str
    table: Node
    target: Target


@dataclass(frozen=True)
class Entrant:
    """A method of a race: its part of the configuration, and the settings that it may try."""

    name: str
    table: Node
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Race:
    """Everything a race is made from.  ``base`` is what all its runs have in common."""

    name: str
    settings: RaceSettings
    base: Layers
    tracks: tuple[Track, ...]
    entrants: tuple[Entrant, ...]
    placement: Placement
    made_from: dict[str, Any]

    @classmethod
    def of(cls, layers: Layers, name: str, jobs: int | None = None) -> Race:
        """From merged files; raises ``ConfigError`` with every fault, each at its file and line."""
        faults: list[Fault] = []
        tree = layers.tree
        settings = _settings(tree, faults)
        budget, seed = (1, 0) if settings is None else (settings.budget, settings.seed)
        tracks = [_track(key, node, faults) for key, node in _named(tree, TASKS, "digits", faults)]
        entrants = [
            _entrant(key, node, budget, seed, faults) for key, node in _named(tree, METHODS, "kfac", faults)
        ]
        placement = Placement.of(tree.table.get(EXECUTOR), jobs, faults)
        for one in (tree, *(track.table for track in tracks if track)):
            faults += run_faults(one)
        if faults or settings is None:
            raise ConfigError(*faults)
        base = Layers(tree.without(RACE, TASKS, METHODS, EXECUTOR), layers.given)
        made_from = plain(tree.without(EXECUTOR))
        found = cls(
            name,
            settings,
            base,
            tuple(track for track in tracks if track),
            tuple(entrant for entrant in entrants if entrant),
            placement,
            made_from,
        )
        found._check()
        return found

    def trial(self, track: Track, entrant: Entrant, point: Point, name: str, seed: int) -> Trial:
        """A run of a method on a task; raises ``ConfigError``."""
        faults: list[Fault] = []
        tree = merge(merge(self.base.tree, track.table, faults), entrant.table, faults)
        seeded = {**point, "run.seed": Node(seed, self.base.tree.origin)}
        layers = at_point(Layers(tree, ""), seeded, name, faults)
        if faults:
            raise ConfigError(*faults)
        return Trial(name, layers, values_of(point), below=f"{track.name}/{entrant.name}")

    def folder(self, out: Path | None) -> Path:
        """Where the runs are."""
        return Path("races") / self.name if out is None else out

    @property
    def runs(self) -> tuple[int, int]:
        """How many runs choose settings, and how many are measured."""
        pairs = len(self.tracks) * len(self.entrants)
        tried = sum(len(one.points) for one in self.entrants if len(one.points) > 1)
        return tried * len(self.tracks) * len(self.settings.tuning_seeds), pairs * len(self.settings.seeds)

    def _check(self) -> None:
        """Build every configuration; raises ``ConfigError`` for what any of them has."""
        faults: dict[Fault, None] = {}
        for track in self.tracks:
            for entrant in self.entrants:
                for point in entrant.points:
                    try:
                        build(self.trial(track, entrant, point, "run", 0).layers)
                    except ConfigError as error:
                        faults.update(dict.fromkeys(error.faults))
                if len(faults) >= _ENOUGH:
                    raise ConfigError(*faults)
        if faults:
            raise ConfigError(*faults)


def _settings(tree: Node, faults: list[Fault]) -> RaceSettings | None:
    table = tree.table.get(RACE)
    if table is None or not table.is_table:
        hint = "add [race] with budget = N, the number of settings that each method may try"
        faults.append((table or tree).fault("table [race] is missing", hint, RACE))
        return None
    builder = Builder(installed())
    built = builder.record(table, RaceSettings, RACE)
    faults += builder.faults.user
    if built is None:
        return None
    found: RaceSettings = built.value
    faults += _seed_faults(table, found)
    return found


def _seed_faults(table: Node, settings: RaceSettings) -> Iterator[Fault]:
    """Seeds are different, and those of the measurement take no part in the choice of settings."""
    for key in ("tuning_seeds", "seeds"):
        values = getattr(settings, key)
        if len(set(values)) < len(values) or not values:
            yield table.table[key].fault(f"{key} must be different numbers, at least one", "", f"race.{key}")
    both = sorted({*settings.tuning_seeds} & {*settings.seeds})
    if both:
        where = table.table.get("seeds", table.table.get("tuning_seeds", table))
        listed = ", ".join(map(str, both))
        yield where.fault(
            f"seeds {listed} are also tuning_seeds", "measure with seeds that chose no setting", "race.seeds"
        )


def _named(tree: Node, key: str, example: str, faults: list[Fault]) -> list[tuple[str, Node]]:
    """The tables of ``[tasks]`` or ``[methods]`` by name."""
    table = tree.table.get(key)
    if table is None or not table.is_table or not table.table:
        faults.append((table or tree).fault(f"table [{key}] is missing", f"add [{key}.{example}]", key))
        return []
    found = []
    for name, node in table.table.items():
        if not _NAME.fullmatch(name):
            hint = 'use letters, digits, ".", "_", "+", "-"'
            faults.append(node.fault(f"{name!r} cannot be a folder's name", hint, key))
        elif not node.is_table:
            faults.append(node.fault(f"expected a table [{key}.{name}]"))
        else:
            found.append((name, node))
    return found


def _track(name: str, node: Node, faults: list[Fault]) -> Track | None:
    given = node.table.get("target")
    if given is None:
        hint = 'add what counts as reached, for example target = "val_accuracy>=0.95"'
        faults.append(node.fault(f"the target of task {name} is missing", hint))
        return None
    target = Target.read(given.value) if isinstance(given.value, str) else None
    if target is None:
        faults.append(
            given.fault('expected "metric<=value" or "metric>=value"', 'for example "val_loss<=0.1"')
        )
        return None
    return Track(name, node.without("target"), target)


def _entrant(name: str, node: Node, budget: int, seed: int, faults: list[Fault]) -> Entrant | None:
    """A method with the points that it may try: all of a small grid, or else those of a Halton sequence."""
    hint = "all methods race on the same budget of training; set it in [run] or in the task"
    refused = (
        [node.table["run"].fault(f"method {name} cannot have a table run", hint)]
        if "run" in node.table
        else []
    )
    over = node.table.get("over")
    space = Space({}) if over is None else Space.of(over, faults)
    if over is not None:
        refused += [
            over.fault(f"{key} cannot differ between settings", hint)
            for key in space.ranges
            if key.startswith("run.")
        ]
        if len(space.ranges) > len(PRIMES):
            refused.append(over.fault(f"at most {len(PRIMES)} keys can be drawn, got {len(space.ranges)}"))
    if refused:
        faults += refused
        return None
    count = space.combinations
    points = space.grid() if count is not None and count <= budget else space.halton(budget, seed)
    return Entrant(name, node.without("over"), tuple(points))


def chosen_in_words(settings: Mapping[str, Any]) -> str:
    """Chosen settings on one line."""
    from curvlab.config.toml_text import inline

    def short(value: Any) -> str:
        return (
            f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else inline(value)
        )

    return " ".join(f"{key.removeprefix('method.')}={short(value)}" for key, value in settings.items())
