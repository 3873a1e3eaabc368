"""Planted regressions are found, by name; nothing is found where nothing was planted.

The suite's own functions measure the package as it is and with a real fault in it, and asv's own class writes
the results that ``bench compare`` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from curvlab.cli.app import app
from curvlab.linalg.vectors import BlockVector
from tests.bench.asv_files import BASE, HEAD, Bench, names, pair

pytestmark = pytest.mark.source_tree

ROOT = Path(__file__).resolve().parents[2]

#: of structures, solvers and methods: the one with the fault, and one beside it
FAMILIES, SOLVERS, METHODS = ("block-diagonal", "diagonal"), ("cg", "minres"), ("sgd", "adamw")
OPERATIONS = ("congruence", "square")

Found = list[tuple[Bench, Sequence[Any]]]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Found]]:
    """Measures a corner of the suite, in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "asv_benchmarks"))
    threads = torch.get_num_threads()
    yield measured
    torch.set_num_threads(threads)


def measured() -> Found:
    from benchmarks import solves, steps, structures

    flops = Bench(
        "structures.Costs.track_flops",
        {"operation": OPERATIONS, "family": FAMILIES, "dimension": (64,)},
        "flops",
    )
    iterations = Bench(
        "solves.Solves.track_iterations",
        {"solver": SOLVERS, "condition": (100, 10_000), "preconditioner": ("none", "rough")},
        "iterations",
    )
    state = Bench("steps.Costs.track_state_bytes", {"method": METHODS, "network": ("mlp",)}, "bytes")
    step_flops = Bench("steps.Costs.track_flops", {"method": METHODS, "network": ("mlp",)}, "flops")
    steps_of = {case: steps.measured(*case) for case in state.cases}
    return [
        (flops, [cost_of(structures, *case) for case in flops.cases]),
        (iterations, [iterations_of(solves, *case) for case in iterations.cases]),
        (state, [steps_of[case]["state_bytes"] for case in state.cases]),
        (step_flops, [steps_of[case]["flops"] for case in step_flops.cases]),
    ]


def cost_of(structures: Any, operation: str, family: str, d: int) -> float:
    call = structures.prepared(operation, structures.made(family), d, "float32")
    return float(structures.cost(call).flops)


def iterations_of(solves: Any, *case: Any) -> float:
    one = solves.Solves()
    one.setup(*case)
    return float(one.track_iterations(*case))


def compared(folder: Path) -> Result:
    return CliRunner().invoke(app, ["bench", "compare", BASE, HEAD, "--results", str(folder)])


def test_nothing_planted_is_equal_ten_times_out_of_ten(measure: Callable[[], Found], tmp_path: Path) -> None:
    base = measure()
    for k in range(10):
        result = compared(pair(tmp_path / str(k), base, measure()))
        assert result.exit_code == 0, result.output
        assert "nothing changed" in result.stdout


def test_an_extra_dense_product_in_one_family_is_named(
    measure: Callable[[], Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curvlab_structures.block_diagonal import BlockDiagonal

    base, sound = measure(), BlockDiagonal.congruence

    def congruence(self: Any, K: Any, X: Tensor) -> Any:
        X = X @ torch.eye(K.d, dtype=X.dtype)
        return sound(self, K, X)

    monkeypatch.setattr(BlockDiagonal, "congruence", congruence)
    result = compared(pair(tmp_path, base, measure()))
    assert result.exit_code == 6
    assert list(names(result.stdout, "worse")) == [
        "structures.Costs.track_flops(congruence, block-diagonal, 64)"
    ]


def test_one_more_iteration_of_cg_is_named(
    measure: Callable[[], Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curvlab.parts import krylov

    base, sound = measure(), krylov.conjugate_gradients

    def one_more(A: Any, b: Any, **settings: Any) -> Any:
        done = sound(A, b, **{**settings, "trace": None}).iterations
        return sound(A, b, **{**settings, "max_iterations": done + 1, "tolerance": 0.0})

    monkeypatch.setattr(krylov, "conjugate_gradients", one_more)
    result = compared(pair(tmp_path, base, measure()))
    assert result.exit_code == 6
    worse = set(names(result.stdout, "worse"))
    assert worse == {
        f"solves.Solves.track_iterations(cg, {condition}, {preconditioner})"
        for condition in (100, 10_000)
        for preconditioner in ("none", "rough")
    }


@dataclass
class Twice:
    """A momentum, and another that nobody reads."""

    moving: BlockVector
    spare: BlockVector


def test_doubled_state_is_named(
    measure: Callable[[], Found], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curvlab.parts.transforms import Momentum

    base, sound = measure(), Momentum.__call__
    monkeypatch.setattr(Momentum, "init", lambda self, like: Twice(like.zeros_like(), like.zeros_like()))
    monkeypatch.setattr(Momentum, "__call__", lambda self, state, v, at: sound(self, state.moving, v, at))
    result = compared(pair(tmp_path, base, measure()))
    assert result.exit_code == 6
    assert list(names(result.stdout, "worse")) == ["steps.Costs.track_state_bytes(sgd, mlp)"]
    assert "× 2" in result.stdout


def test_every_benchmark_that_got_worse_is_named_on_stderr_too(
    measure: Callable[[], Found], tmp_path: Path
) -> None:
    base = measure()
    head = [(bench, [2 * value for value in values]) for bench, values in base]
    result = compared(pair(tmp_path, base, head))
    assert result.exit_code == 6
    for bench, values in base:
        assert result.stderr.count(f"{bench.name}(") == sum(value > 0 for value in values)
