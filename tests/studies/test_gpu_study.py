"""The study on a GPU: its logic on the CPU, what it refuses, and a page that claims nothing unmeasured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.studies.conftest import ROOT, Script

PAGE = ROOT / "docs" / "studies" / "gpu.md"
TRY = ["--device", "cpu", "--tiny", "--precisions", "float32"]


@pytest.fixture
def gpu(script: Script) -> Any:
    return script("gpu")


def test_the_page_says_that_nothing_was_measured(script: Script) -> None:
    assert PAGE.read_text() == script("gpu_page").written(None)
    assert "has not been run" in PAGE.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_it_refuses_a_machine_without_a_device_in_one_sentence(
    gpu: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = PAGE.read_text()
    assert gpu.main([]) == 1
    told = capsys.readouterr().err
    assert told.startswith("this study needs a CUDA device, and torch finds none here")
    assert told.count("\n") == 1
    assert PAGE.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--device", "cpu"], 1, "add --tiny"),
        (["--device", "meta"], 1, "meta is none"),
        (
            ["--device", "cpu", "--tiny", "--precisions", "float33"],
            3,
            'unknown precision "float33"; choose by',
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(
    gpu: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    assert gpu.main(arguments) == status
    assert words in capsys.readouterr().err


def test_every_stage_runs_on_small_networks_and_writes_no_page(
    gpu: Any, script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, kept = PAGE.read_text(), []
    study = gpu.study
    monkeypatch.setattr(gpu, "TIMED", {label: gpu.TIMED[label] for label in ("adamw", "singd, diagonal")})
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(gpu, "study", lambda *given: kept.append(study(*given)) or kept[-1])
    assert gpu.main([*TRY, "--methods", "sgd", "kfac"]) == 0
    (found,) = kept
    assert PAGE.read_text() == before
    assert [(a.method, a.off) for a in found.agreements] == [("sgd", 0.0), ("kfac", 0.0)]
    assert {(c.network, c.method) for c in found.costs} == {
        (n, m) for n in ("resnet18", "gpt") for m in ("adamw", "singd, diagonal")
    }
    assert all(c.milliseconds > 0 and c.time > 0 and not c.failure for c in found.costs)
    assert all(t.last < t.first for t in found.trainings)
    assert found.left_out == []
    page = script("gpu_page").written(found)
    assert "| singd, diagonal | float32 |" in page
    assert "has not been run" not in page
    assert capsys.readouterr().out.count("\n") == 8


def test_what_fails_is_a_row_that_says_why_and_what_is_late_is_listed(
    gpu: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **knobs: Any) -> Any:
        if given[3] == there:
            raise RuntimeError("a kernel is missing | in this build\nand more")
        return steps(*given, **knobs)

    there, steps = torch.device("cpu", 0), gpu.stepper
    monkeypatch.setattr(gpu, "stepper", broken)
    bench = gpu.Bench(there, True, gpu.time.perf_counter(), 1e9)
    row = gpu.agreement(bench, "float32", "sgd", [2.0])
    assert row.failure == "a kernel is missing / in this build"
    late = gpu.Bench(torch.device("cpu"), True, gpu.time.perf_counter() - 60, 1.0)
    monkeypatch.setattr(gpu, "TIMED", {"adamw": ("adamw", {})})
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    found = gpu.study(late, "a machine", ["float32"], ["sgd"])
    assert found.left_out[0] == "`sgd` against the CPU"
    assert len(found.left_out) == 1 + 2 + 2
    assert "There was no time for `sgd` against the CPU" in script("gpu_page").written(found)
