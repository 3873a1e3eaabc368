"""The study of low precision: its products, its runs, and a page that comes from the committed numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.studies.conftest import ROOT, Script

STUDIES = ROOT / "docs" / "studies"


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_half_products_are_those_of_float32_rounded_once(script: Script) -> None:
    A, B, C = rows(7, 30), rows(30, 5, seed=1), rows(7, 5, seed=2)
    wide = A.float() @ B.float()
    with script("half_products").HalfProducts():
        assert torch.equal(A @ B, wide.bfloat16())
        assert torch.equal(torch.addmm(C, A, B, beta=0.5, alpha=2.0), (0.5 * C.float() + 2 * wide).bfloat16())
        out = torch.empty(7, 5, dtype=torch.bfloat16)
        torch.mm(A, B, out=out)
        assert torch.equal(out, wide.bfloat16())
        assert torch.equal(C.clone().addmm_(A, B), (C.float() + wide).bfloat16())
        stacked = torch.stack([A, A]) @ torch.stack([B, B])
        assert torch.equal(stacked, torch.stack([wide, wide]).bfloat16())
        assert torch.equal(A.float() @ B.float(), wide)


def test_runs_are_made_once_and_drawn_without_being_made(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = script("low_precision")
    monkeypatch.setitem(script("low_precision_runs").NETS, "mlp", script("low_precision_runs").NETS["narrow"])
    monkeypatch.setitem(study.STEPS, "mlp", 12)
    page = tmp_path / "low-precision.md"
    asked = ["methods", "--page", str(page), "--nets", "mlp", "--only", "kfac", "diagonal", "--seeds", "0"]
    assert study.main(asked) == 0
    runs = (tmp_path / "low-precision" / "runs.jsonl").read_text()
    # two entrants in three precisions, and KFAC with its factors in bfloat16 by two roundings
    assert len(runs.splitlines()) == 3 * 3 - 1
    assert study.main(asked) == 0
    assert (tmp_path / "low-precision" / "runs.jsonl").read_text() == runs
    first = page.read_text()
    assert first.count("12 steps") == 1
    assert study.main(["--draw", "--page", str(page)]) == 0
    assert page.read_text() == first


def test_a_run_says_what_was_not_finite(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = script("low_precision_runs")
    entrant = runs.Entrant("adamw", "adamw", {"lr": 1e3})
    found = runs.train(entrant, runs.FLOAT32, "narrow", 12, 0)
    assert not runs.held(found)
    assert found["worst"] > found["start"]
    assert runs.not_finite([torch.tensor([1.0, torch.nan, torch.inf]), torch.ones(2)]) == 2


def test_the_page_holds_the_committed_numbers(script: Script) -> None:
    training, page = script("training"), script("low_precision_page")
    assert (
        page.written(training.Ledger(STUDIES / "low-precision")) == (STUDIES / "low-precision.md").read_text()
    )
    assert (STUDIES / "low-precision.svg").stat().st_size < 150_000


def test_half_of_the_state_is_left_of_singd_in_bfloat16(script: Script) -> None:
    """In every committed run of a structure; counters and what the layers hold in float32 are the rest."""
    lines = (STUDIES / "low-precision" / "runs.jsonl").read_text().splitlines()
    found = script("low_precision_page").Found([json.loads(line) for line in lines])
    for name in found.names("mlp", 1000):
        base, half = (found.seeds(name, {"use": use}, "mlp", 1000) for use in ("float32", "bfloat16"))
        for seed in base.keys() & half.keys():
            assert half[seed]["bytes"] < 0.501 * base[seed]["bytes"]
