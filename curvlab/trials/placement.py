"""The table ``[executor]``: who carries out trials, and how many at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curvlab.config.tree import Node, describe, plain
from curvlab.errors import Fault
from curvlab.registry.suggest import advice

#: executors by name
PROCESSES, SUBMITIT = "processes", "submitit"
#: as many as a pool of processes may have
MOST_JOBS = 1024
#: keys of the table that are not options of submitit
_OWN = ("use", "jobs")


@dataclass(frozen=True)
class Placement:
    """``use`` names the executor; ``jobs`` is the most trials at a time.

    ``options`` are parameters of ``submitit.AutoExecutor``: ``cluster`` of its constructor, the others of
    its ``update_parameters``.
    """

    use: str = PROCESSES
    jobs: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Node | None, jobs: int | None, faults: list[Fault]) -> Placement:
        """From the table, if there is one, and the number of jobs of a command line, which overrides it."""
        if table is None:
            return cls(jobs=jobs or 1)
        found = list(_faults(table))
        faults += found
        if found:
            return cls()
        given = {key: plain(node) for key, node in table.table.items()}
        options = {key: value for key, value in given.items() if key not in _OWN}
        return cls(given.get("use", PROCESSES), jobs or given.get("jobs", 1), options)


def _faults(table: Node) -> list[Fault]:
    if not table.is_table:
        return [table.fault(f"expected a table, got {describe(plain(table))}", "for example { jobs = 2 }")]
    found = []
    use, jobs = table.table.get("use"), table.table.get("jobs")
    if use is not None and use.value not in (PROCESSES, SUBMITIT):
        known = advice(str(plain(use)), (PROCESSES, SUBMITIT), "Executors")
        found.append(use.fault(f"unknown executor: {describe(plain(use))}", known))
    if jobs is not None and (type(jobs.value) is not int or not 1 <= jobs.value <= MOST_JOBS):
        what = f"expected a whole number from 1 to {MOST_JOBS}, got {describe(plain(jobs))}"
        found.append(jobs.fault(what))
    if use is None or use.value == PROCESSES:
        found += [
            node.fault(f"the executor {PROCESSES} has no setting {key}", "Settings: use, jobs.")
            for key, node in table.table.items()
            if key not in _OWN
        ]
    if use is not None and use.value == SUBMITIT and not _has_submitit():
        found.append(use.fault("submitit is not installed", 'run: pip install "curvlab[submitit]"'))
    return found


def _has_submitit() -> bool:
    from importlib.util import find_spec

    return find_spec("submitit") is not None
