"""Reading run folders, whatever state they are in."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvlab.errors import CurvlabError, UsageError
from curvlab.reporting.rundir import RunDir


def test_a_run_that_has_only_begun_reads_as_empty(tmp_path: Path) -> None:
    (tmp_path / "resolved.toml").write_text("x = 1\n")
    run = RunDir.open(tmp_path)
    assert (run.manifest, run.summary, run.finished) == ({}, {}, False)
    assert (run.steps(), run.evaluations(), run.events()) == ([], [], [])
    assert run.resolved == "x = 1\n"


def test_what_is_no_run_folder_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no resolved\.toml"):
        RunDir.open(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        RunDir.open(tmp_path / "nowhere")


def test_a_torn_line_in_the_middle_is_an_error_that_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "step", "step": 1}\n{"kind": "st\n{"kind": "step", "step": 3}\n'
    )
    with pytest.raises(CurvlabError, match=r"metrics\.jsonl:2"):
        RunDir(tmp_path).steps()


def test_a_document_that_is_not_json_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(CurvlabError, match=r"summary\.json"):
        _ = RunDir(tmp_path).summary
