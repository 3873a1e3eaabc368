"""The commands that write the studies of SINGD's structures, at toy sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from curvlab.protocols.structure import Group
from curvlab.registry.imports import part_class
from tests.limits.registered import registry
from tests.studies.conftest import Script


def stability(script: Script, folder: Path, *arguments: str) -> int:
    where = ["--runs", str(folder), "--page", str(folder / "page.md"), "--net", "narrow"]
    code: int = script("singd_stability").main([*where, *arguments])
    return code


def test_every_group_is_studied(script: Script) -> None:
    groups = {registry().use(e) for e in registry().parts("structure") if issubclass(part_class(e), Group)}
    assert set(script("training").families()) == groups


def test_stability_is_run_in_pieces_and_no_piece_twice(script: Script, tmp_path: Path) -> None:
    asked = ["--only", "dense", "ikfac", "--every", "10", "--steps", "12"]
    assert stability(script, tmp_path, *asked, "--seeds", "0") == 0
    assert stability(script, tmp_path, *asked, "--seeds", "0", "1") == 0
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [(r["key"]["seed"], r["key"]["name"]) for r in runs] == [
        (seed, name) for seed in (0, 1) for name in ("dense", "ikfac")
    ]
    page = (tmp_path / "page.md").read_text()
    assert "4 of " in page
    assert page.count("| 2 of 2 |") == 2


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        ({"start": 2.3, "worst": 2.3, "end": 1.0, "failure": ""}, True),
        ({"start": 2.3, "worst": 2.31, "end": 1.0, "failure": ""}, False),
        ({"start": 2.3, "worst": 2.2, "end": math.nan, "failure": "step 12: not finite"}, False),
    ],
)
def test_what_holds(script: Script, found: dict[str, Any], holds: bool) -> None:
    assert script("singd_stability").held(found) is holds


def test_a_run_that_comes_to_no_number_is_a_failure(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = script("training")
    data = training.images("train", False)
    blinding = training.Examples(torch.full_like(data.inputs, torch.inf), data.targets)
    monkeypatch.setattr(training, "images", lambda part, reconstruct: blinding)
    assert stability(script, tmp_path, "--only", "dense", "--steps", "12", "--seeds", "0") == 1
    (found, _) = (json.loads(line)["found"] for line in (tmp_path / "runs.jsonl").read_text().splitlines())
    assert found["failure"].startswith("step 1: ")
    assert "| 0 of 1 | step 1: " in (tmp_path / "page.md").read_text()


def test_runs_of_other_defaults_are_other_runs(script: Script) -> None:
    Contestant = script("training").Contestant
    key = Contestant("dense", "singd", {"refresh": 1}).key()
    assert key == Contestant("dense", "singd", {"refresh": 1}).key()
    assert key != Contestant("dense", "singd", {"refresh": 1, "damping": 0.5}).key()


def test_structures_write_a_page_and_a_picture_and_repeat_nothing(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("structures")
    small = module.NETS["narrow"]
    monkeypatch.setattr(module, "NET", small)
    monkeypatch.setitem(module.NETS, "mlp", small)
    page = tmp_path / "page" / "structures.md"
    where = ["--runs", str(tmp_path), "--page", str(page), "--rounds", "1"]
    asked = [*where, "--only", "torch.optim.AdamW", "diagonal", "--steps", "4", "--every", "2"]
    module.main([*asked, "--seeds", "0", "1"])
    lines = (tmp_path / "runs.jsonl").read_text()
    first = page.read_text()
    module.main([*asked, "--seeds", "0", "1"])
    assert (tmp_path / "runs.jsonl").read_text() == lines
    assert page.read_text() == first
    assert "| torch.optim.AdamW | 1.000 | 1.00 |" in first
    assert "| singd, diagonal |" in first
    assert page.with_suffix(".png").stat().st_size > 1000

    rivals = tmp_path / "rivals.json"
    rival = {"name": "diagonal, slowly", "method": "singd", "knobs": {"structure": "diagonal"}}
    rivals.write_text(json.dumps([{**rival, "rates": [1e-4, 1e-3]}]))
    module.main([*where, "--progress", "mlp", "--rivals", str(rivals), "--adamw-steps", "3"])
    both = page.read_text()
    assert first.split("```")[0].strip() in both, "the first section stays"
    assert "| diagonal, slowly |" in both


def test_values_between_evaluations_lie_on_the_line_and_beyond_them_nowhere(script: Script) -> None:
    between = script("structures").between
    points = [(0, 2.0, 0.1), (10, 1.0, 0.5)]
    assert between(points, 5, 1) == pytest.approx(1.5)
    assert between(points, 10, 2) == pytest.approx(0.5)
    assert math.isnan(between(points, 11, 1))
