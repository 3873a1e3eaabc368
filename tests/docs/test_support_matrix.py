"""The support matrix says what the code does."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import support
import torch
from layer_kinds import LAYERS, OTHERS
from torch import Tensor

import curvlab
from curvlab.testing.layers import Behind
from tests.limits.registered import methods


def test_the_page_has_every_method_and_every_kind_of_layer() -> None:
    text = (Path(support.__file__).parents[1] / "support-matrix.md").read_text(encoding="utf-8")
    assert [m for m in methods() if f"`{m}`" not in text] == []
    assert [layer for layer in LAYERS if layer not in text] == []


@pytest.mark.grid  # more than a minute; ``nox -s docs`` makes the same comparison
def test_the_page_is_what_the_code_makes() -> None:
    """In a process of its own: checked shapes would make it three times as long."""
    done = subprocess.run(
        [sys.executable, support.__file__, "--check"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_combination_that_is_refused_says_why() -> None:
    case = LAYERS["`nn.Linear`"]
    places = {place: {"use": "low-rank"} for place in support.TAKES["singd"]}
    assert "Group" in support.attempt("singd", case, "float32", places, labels="data")


@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
def test_layers_with_a_reader_are_trained_by_methods_of_layers_and_others_by_their_fallback() -> None:
    assert not any(support.treatment("kfac", LAYERS["`nn.Conv2d`"]))
    assert (
        support.treatment("kfac", OTHERS["`nn.SyncBatchNorm`"])
        == ("the statistics of SyncBatchNorm are those of several processes",) * 2
    )


def test_the_table_has_thirty_kinds_of_layers_and_kfac_and_singd_train_most_of_them() -> None:
    """Counted in the page, which another test compares with the code."""
    text = support.PAGE.read_text(encoding="utf-8").partition("## Layer × method")[2]
    head, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    rows = rows[: len(LAYERS) + len(OTHERS)]
    assert len(rows) >= 30
    for method in ("kfac", "singd"):
        column = head.index(f"`{method}`")
        assert sum(row[column] == support.YES for row in rows) >= 26


@pytest.mark.filterwarnings("ignore::curvlab.objectives.mismatch.LayerMismatch")
@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
@pytest.mark.parametrize("layer", [*LAYERS, *OTHERS])
def test_a_layer_that_a_method_trains_has_the_dense_gauss_newton_block(layer: str) -> None:
    """In float64, with exact labels, of what each method sees of the layer."""
    case = {**LAYERS, **OTHERS}[layer]
    torch.manual_seed(0)
    model, x = case.model().double(), case.inputs()
    truths: dict[tuple[str, ...], Tensor] = {}
    for method in support.METHODS:
        behind = Behind.of(copy.deepcopy(model), (x if case.tokens else x.double(),), len(x))
        optimizer = curvlab.optimizer(method, behind.model, lr=0.0)
        optimizer.step(behind.objective())
        trained = {row.block for row in optimizer.coverage() if not row.reason}
        # where an embedding shares its matrix, the block is that of the layer's use
        names = [b.name for b in optimizer.blocks.members if b.name in trained and not b.transposed]
        seen = optimizer.blocks.select(names)
        if names:
            assert all(b.is_layer for b in seen.members)
            key = tuple(seen.layout.names)
            truths[key] = truths[key] if key in truths else behind.truth(seen)
            behind.assert_blocks(seen, f"{method}, {layer}", truths[key])


#: torch computes this layer in float16 on a GPU alone
NOT_IN_FLOAT16_ON_A_CPU = ("`nn.LSTM`",)


def treated(layer: str, low: str) -> list[str]:
    """Which parameters ``kfac`` trains itself after two steps; ``low`` is a way to low precision, or none."""
    case = {**LAYERS, **OTHERS}[layer]
    torch.manual_seed(0)
    model, x = case.model(), case.inputs()
    if low.startswith("bfloat16"):
        model, x = model.bfloat16(), x if case.tokens else x.bfloat16()
    precision = low if low.startswith("mixed") else None
    optimizer = curvlab.optimizer("kfac", model, labels="data", precision=precision)
    y = torch.zeros(6, dtype=torch.long)
    for _ in range(2):
        if low.endswith("plain loop"):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low.startswith("autocast")):
                loss = torch.nn.functional.cross_entropy(model(x).float(), y)
                loss.backward()
                optimizer.step()
        else:
            optimizer.step(curvlab.objective(model, torch.nn.CrossEntropyLoss(), x, y))
    return sorted(row.parameter for row in optimizer.coverage() if row.treatment == "kfac")


@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
@pytest.mark.parametrize("layer", [*LAYERS, *OTHERS])
def test_in_low_precision_a_layer_is_treated_as_in_float32(layer: str) -> None:
    ways = ["bfloat16", "bfloat16, plain loop", "autocast, plain loop", "mixed-bfloat16"]
    if layer not in NOT_IN_FLOAT16_ON_A_CPU:
        ways.append("mixed-float16")
    expected = treated(layer, "")
    for low in ways:
        assert treated(layer, low) == expected, low
