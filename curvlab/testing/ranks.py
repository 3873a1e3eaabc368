"""Two processes that add up tensors over gloo, for as long as they get sums to do.

``python -m curvlab.testing.ranks RANK STORE`` is one of the two.  They are started when first needed and
end with the process that started them: one pair serves every part of a session.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

#: seconds that one process waits for the other
PATIENCE = 120


def all_reduced(of_ranks: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What each of two ranks holds after its tensors were summed with the other's, name by name."""
    return _pair().all_reduced(of_ranks)


class _Pair:
    """Both processes, and the folder where tensors are handed over."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="curvlab-ranks-")
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "curvlab.testing.ranks", str(rank), str(self._path("store"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        atexit.register(self.close)

    def all_reduced(self, of_ranks: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        for rank, tensors in enumerate(of_ranks):
            torch.save(dict(tensors), self._path(f"in{rank}"))
        for rank, process in enumerate(self._processes):
            assert process.stdin is not None
            print(self._path(f"in{rank}"), self._path(f"out{rank}"), sep="\t", file=process.stdin, flush=True)
        answers = [p.stdout.readline().strip() for p in self._processes if p.stdout is not None]
        wrong = [answer or "a process ended early" for answer in answers if answer != "done"]
        if wrong:
            raise AssertionError(f"over two gloo processes: {wrong[0]}")
        return [torch.load(self._path(f"out{rank}"), weights_only=True) for rank in range(2)]

    def close(self) -> None:
        """End both processes."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
            process.wait(timeout=PATIENCE)
            if process.stdout is not None:
                process.stdout.close()
        self._folder.cleanup()

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name


@lru_cache(maxsize=1)
def _pair() -> _Pair:
    return _Pair()


def main(rank: int, store: str) -> None:
    """Sum what stands in the file of each line of standard input, until it ends."""
    from datetime import timedelta

    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=PATIENCE),
    )
    for line in sys.stdin:
        given, wanted = line.rstrip("\n").split("\t")
        try:
            tensors = torch.load(given, weights_only=True)
            for name in sorted(tensors):
                dist.all_reduce(tensors[name])
            torch.save(tensors, wanted)
            print("done", flush=True)
        except (RuntimeError, ValueError) as error:  # of gloo: a dtype or layout that it cannot send
            print(" ".join(str(error).split()) or "failed", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
