"""Trials that Optuna proposes: its samplers and pruners, with a study in an SQLite file beside the runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from curvlab.config import build
from curvlab.config.toml_text import inline
from curvlab.config.tree import Node, plain
from curvlab.errors import ConfigError, Fault
from curvlab.protocols.report import EvalRecord, Reporter, StopRun
from curvlab.sweeps.optional import Named
from curvlab.sweeps.result import INVALID, Result
from curvlab.sweeps.sweep import Sweep
from curvlab.trials.ranges import Choices, Range
from curvlab.trials.space import Point, at_point, values_of
from curvlab.trials.trial import Trial

#: the study's file in the sweep's folder
STORAGE = "optuna.db"


class OptunaProposals:
    """A study.  The k-th trial is proposed with a seed of its own, with the results so far."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep = sweep
        self._storage = f"sqlite:///{folder / STORAGE}"
        self._refused: list[Result] = []
        self._numbers: dict[str, int] = {}
        self._distributions = {key: distribution(one) for key, one in sweep.space.ranges.items()}
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=sweep.name,
            direction="maximize" if sweep.more_is_better else "minimize",
            pruner=sweep.pruner.build(),
            load_if_exists=True,
        )

    def trials(self) -> Iterator[Trial]:
        """Those of the study, whatever came of them, then new ones."""
        known = list(self._known())
        for number in range(self._sweep.count):
            trial = known[number] if number < len(known) else self._ask(number)
            name = f"{self._sweep.name}-{number:04}"
            self._numbers[name] = trial.number
            made = self._trial(name, trial)
            if made is not None:
                yield made

    def tell(self, trial: Trial, result: Result) -> None:
        number = self._numbers[trial.name]
        if self._study.trials[number].state.is_finished():  # told before the sweep was stopped
            return
        if result.state == "finished" and result.value is not None:
            self._study.tell(number, result.value)
        elif result.state == "failed":
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, state=TrialState.PRUNED)

    def refused(self) -> list[Result]:
        return self._refused

    def _known(self) -> Iterator[FrozenTrial]:
        """The trials of the study that have all their values; the others were killed while being proposed."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.params.keys() == self._distributions.keys():
                yield trial
            elif not trial.state.is_finished():
                self._study.tell(trial.number, state=TrialState.FAIL)

    def _ask(self, number: int) -> FrozenTrial:
        sampler = self._sweep.sampler
        self._study.sampler = sampler.build(sampler.seed_of(self._sweep.settings.seed, number))
        asked = self._study.ask(dict(self._distributions))
        return self._study.trials[asked.number]

    def _trial(self, name: str, trial: FrozenTrial) -> Trial | None:
        """The trial as a run; ``None``, and a refused result, if no run can have these settings."""
        point = self._point(trial.params)
        faults: list[Fault] = []
        try:
            layers = at_point(self._sweep.base, point, name, faults)
            if faults:
                raise ConfigError(*faults)
            build(layers)
        except ConfigError as error:
            self._refused.append(Result(name, values_of(point), INVALID, str(error)))
            if not trial.state.is_finished():
                self._study.tell(trial.number, state=TrialState.FAIL)
            return None
        pruning = Pruning(
            self._storage, self._sweep.name, trial.number, self._sweep.pruner, self._sweep.metric
        )
        return Trial(name, layers, values_of(point), pruning)

    def _point(self, params: Mapping[str, Any]) -> Point:
        """Optuna's values as nodes with the places of their ranges."""
        found = {}
        for key, one in self._sweep.space.ranges.items():
            if isinstance(one, Choices):
                found[key] = next(node for node in one.values if inline(plain(node)) == params[key])
            else:
                found[key] = Node(params[key], one.node.origin)
        return found


def distribution(one: Range) -> BaseDistribution:
    """A range as Optuna has it; listed values go by their TOML text, because they may be tables."""
    if isinstance(one, Choices):
        return CategoricalDistribution([inline(plain(node)) for node in one.values])
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), log=one.log)
    return FloatDistribution(float(one.low), float(one.high), log=one.log)


@dataclass(frozen=True)
class Pruning:
    """Makes the reporter of a trial, in whatever process trains it."""

    storage: str
    study: str
    number: int
    pruner: Named
    metric: str

    def __call__(self) -> Reporter:
        """The reporter."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.load_study(study_name=self.study, storage=self.storage, pruner=self.pruner.build())
        return Pruner(study, study.trials[self.number], self.metric)


class Pruner(Reporter):
    """Reports evaluations to a study, and stops the run that the study's pruner finds hopeless."""

    def __init__(self, study: optuna.Study, trial: FrozenTrial, metric: str) -> None:
        self._trial = optuna.Trial(study, trial._trial_id)
        self._reported = set(trial.intermediate_values)
        self._metric = metric

    def evaluated(self, record: EvalRecord) -> None:
        value = record.metrics.get(self._metric, math.nan)
        if not math.isfinite(value):
            return
        if record.step not in self._reported:  # a run that goes on from a checkpoint evaluates again
            self._trial.report(value, record.step)
            self._reported.add(record.step)
        if self._trial.should_prune():
            raise StopRun(f"{self._metric} = {value:.4g} at step {record.step} is not promising")
