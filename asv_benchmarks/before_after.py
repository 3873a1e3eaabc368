"""What a step of a method costs now beside what it cost at another commit, in one process.

    OMP_NUM_THREADS=1 python asv_benchmarks/before_after.py d7f2bee [--rounds 21]

The other commit's sources are checked out into a temporary folder and imported beside the present ones.
These are two sets of modules of the same names.  One at a time is in ``sys.modules``, also while its steps
run, since functions import too.  Network, data and timing as in ``pairs``, with a copy of them for each side,
whole cycles of ten steps.  What the other commit does not know is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pairs import MLP, Ratio, quiet, seconds

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10

#: method and knobs, by the name that the table gives them
SUBJECTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "adamw": ("adamw", {}),
    "kfac, T = 10": ("kfac", {"refresh": 10}),
    "ekfac, T = 10": ("ekfac", {"refresh": 10}),
    **{
        f"singd {name}, T = {every}": ("singd", {"structure": structure, "refresh": every})
        for name, structure in {
            "dense": {"use": "dense"},
            "hierarchical 15+15": {"use": "hierarchical", "top": 15, "bottom": 15},
            "block-diagonal 30": {"use": "block-diagonal", "size": 30},
            "lower-toeplitz": {"use": "lower-toeplitz"},
            "lower-arrow": {"use": "lower-arrow"},
            "diagonal": {"use": "diagonal"},
        }.items()
        for every in (10, 1)
    },
}


class Version:
    """The package and its plugins as they are in a folder, imported beside other versions of them."""

    def __init__(self, root: Path) -> None:
        self.paths = [str(root), *map(str, sorted(root.glob("plugins/*/")))]
        self.modules: dict[str, ModuleType] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """While it lasts, this version is what ``import curvlab`` finds."""
        others, path = _taken_out(), list(sys.path)
        sys.modules.update(self.modules)
        sys.path[:0] = self.paths
        try:
            yield
        finally:
            self.modules = _taken_out()
            sys.modules.update(others)
            sys.path[:] = path

    def stepper(self, method: str, knobs: Mapping[str, Any]) -> Callable[[], object] | None:
        """A step of a method on a network of its own; ``None`` if this version does not know it."""
        model, data = MLP.model(), MLP.batches()
        with self.current():
            import curvlab
            from curvlab.errors import CurvlabError

            try:
                optimizer = curvlab.optimizer(method, model, **knobs)
            except CurvlabError:
                return None

        def step() -> None:
            x, y = next(data)
            optimizer.step(curvlab.objective(model, MLP.criterion, x, y))

        return step


def _taken_out() -> dict[str, ModuleType]:
    """Every module of ours that is imported, and no longer is."""
    names = [name for name in sys.modules if name.partition(".")[0].partition("_")[0] == "curvlab"]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The sources at a commit, in a folder that lasts as long."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit], stdout=subprocess.PIPE, check=False
        )
        if archive.returncode:
            sys.exit(f"git knows no commit {commit} (its own words are above)")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def compared(
    before: Version, after: Version, subject: tuple[str, Mapping[str, Any]], rounds: int
) -> list[float]:
    """One ratio of CPU times, after over before, for each round; none if one of them lacks the subject."""
    sides = [(v, step) for v in (before, after) if (step := v.stepper(*subject)) is not None]
    ratios: list[float] = []
    if len(sides) < 2:
        return ratios
    for k in range(rounds + 1):
        took = []
        for version, step in sides:
            with version.current():
                took.append(seconds(step, STEPS))
        if k:  # the first round warms up
            ratios.append(took[1] / took[0])
    return ratios


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("commit")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=21)
    asked = parser.parse_args(argv)
    quiet()
    print(f"| step | now ÷ {asked.commit} |\n|---|--:|")
    with checked_out(asked.commit) as root:
        before, after = Version(root), Version(ROOT)
        for name in asked.only:
            found = compared(before, after, SUBJECTS[name], asked.rounds)
            print(f"| {name} | {Ratio.of(found) if found else '–'} |", flush=True)
    return 0


if __name__ == "__main__":
    torch.manual_seed(0)
    sys.exit(main())
