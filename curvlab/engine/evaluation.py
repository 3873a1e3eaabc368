"""The metrics of a run: of the trained weights, and of their average where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from curvlab.engine.averaging import Averaging
from curvlab.engine.batch_norm import recompute
from curvlab.engine.company import ALONE, Company
from curvlab.protocols.task import Workload

#: what goes before the name of a metric of the trained weights, where the averaged ones are evaluated too
TRAINED = "trained_"


def metrics_of(
    workload: Workload,
    averaging: Averaging | None,
    batch_size: int,
    company: Company = ALONE,
) -> Mapping[str, float]:
    """The metrics of a workload by name, of the first process for all.

    With an average these are of the averaged weights, for which the statistics of batch normalization are
    computed anew; metrics of the trained weights have names that begin with ``trained_``.
    """
    trained = company.told(_metrics(workload))
    if averaging is None:
        return trained
    with averaging.averaged():
        company.all_do(lambda: recompute(workload, batch_size))
        averaged = company.told(_metrics(workload))
    return {**averaged, **{TRAINED + name: value for name, value in trained.items()}}


def _metrics(workload: Workload) -> Callable[[], Mapping[str, float]]:
    return lambda: {name: float(value) for name, value in workload.metrics().items()}
