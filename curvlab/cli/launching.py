"""Starting the processes of a run on this machine, through ``torch.distributed.run``'s own launcher."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from uuid import uuid4

import typer

from curvlab.engine.interrupts import EXIT_CODES
from curvlab.errors import CurvlabError, UsageError

#: options that are for the launcher alone
_OPTION = "--processes"


def rank() -> int:
    """Which process of a run this is; 0 in one that was not started with others."""
    return int(os.environ.get("RANK", "0"))


def launched() -> bool:
    """Whether a launcher has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run ``curvlab`` with these arguments in so many processes, and end as they do.

    Each takes as many threads as the environment or the configuration says, or else one.  If one fails, the
    others are stopped, and a message names it.  Raises ``typer.Exit`` with the exit status of a process
    that ended with one, and ``UsageError`` inside of a launcher.
    """
    if launched():
        raise UsageError(
            f"{_OPTION} starts processes, and this is one that torchrun has started; leave {_OPTION} out"
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):  # they tell of failures by tracebacks; we in words
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        run_id=uuid4().hex,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "curvlab", *without_option(arguments))
    except SignalException as error:  # the processes were told, and have stopped with a checkpoint
        raise typer.Exit(EXIT_CODES.get(error.sigval.name, CurvlabError.exit_code)) from error
    except ChildFailedError as error:
        failed, failure = error.get_first_failure()
        if failure.exitcode > 0:
            raise typer.Exit(failure.exitcode) from error
        raise CurvlabError(
            f"rank {failed} was ended by {failure.signal_name()}; the others have stopped."
            " Continue the run with `curvlab resume`"
        ) from error


def without_option(arguments: Sequence[str]) -> list[str]:
    """The arguments of each process."""
    kept: list[str] = []
    left = iter(arguments)
    for word in left:
        if word == _OPTION:
            next(left, None)
        elif not word.startswith(f"{_OPTION}="):
            kept.append(word)
    return kept
