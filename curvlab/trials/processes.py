"""A pool of processes that train: they end, with a checkpoint, when the process that started them does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

from curvlab.errors import Stopped

#: seconds between signals to a worker whose parent is gone: the first ends its run, the second an idle worker
_INSIST = 5.0


@contextmanager
def processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of ``jobs`` processes with one thread each, unless the environment says otherwise.

    If the caller fails, or SIGTERM comes, the trials in progress are stopped with a checkpoint.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as for the processes of one run
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _end_with_parent)
    in_main = threading.current_thread() is threading.main_thread()
    before: Any = signal.signal(signal.SIGTERM, _stop) if in_main else None
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    what = "stopped by SIGTERM, with a checkpoint of each trial in progress"
    raise Stopped(f"{what}; run the same command again to continue", 75)


def _end_with_parent() -> None:
    """In a worker: notice that the process that started it is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker of a pool has a parent"
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_INSIST)
