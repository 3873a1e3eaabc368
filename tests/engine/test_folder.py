"""Run folders: made once, found again."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tomli

from curvlab.engine.folder import claimed, create, unfinished, write_resolved
from curvlab.engine.plan import Plan
from curvlab.errors import Diverged, UsageError
from tests.engine.small_run import PLAIN, Restless, run_small, small_plan

PLAN = small_plan(PLAIN, steps=6)


def test_the_name_says_run_time_and_configuration(tmp_path: Path) -> None:
    folder = create(tmp_path, PLAN)
    assert re.fullmatch(r"run-\d{8}T\d{6}Z-[0-9a-f]{6}", folder.name)
    same, other = create(tmp_path, PLAN), create(tmp_path, small_plan(PLAIN, steps=7))
    assert same.name != folder.name
    assert same.name[-6:] == folder.name[-6:] != other.name[-6:]


def test_the_configuration_is_in_it_as_given_and_resolved(tmp_path: Path) -> None:
    plan = replace(PLAN, given="# mine\nx = 1\n", resolved={"run": {"steps": 6}, "task": {"use": "x"}})
    folder = create(tmp_path, plan)
    assert (folder / "config.toml").read_text() == plan.given
    assert tomli.loads((folder / "resolved.toml").read_text()) == plan.resolved
    write_resolved(folder, replace(plan, resolved={"run": {"steps": 9}}))
    assert tomli.loads((folder / "resolved.toml").read_text()) == {"run": {"steps": 9}}
    assert (folder / "config.toml").read_text() == plan.given


def test_a_claim_ends_with_its_block(tmp_path: Path) -> None:
    folder = create(tmp_path, PLAN)

    def claim_again() -> None:
        with claimed(folder):
            pass

    with claimed(folder), pytest.raises(UsageError, match="in use"):
        claim_again()
    claim_again()


def interrupted(out: Path, plan: Plan) -> Path:
    """A run that has a checkpoint and is not finished."""
    poisoned = replace(plan, task=Restless(poison=4))
    with pytest.raises(Diverged, match="is nan"):
        run_small(out, replace(poisoned, run=replace(plan.run, checkpoint_every=3)))
    return max(out.iterdir())


def test_a_run_of_the_same_configuration_that_can_go_on_is_found(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, PLAN)
    assert unfinished(tmp_path, PLAN) == folder
    told_otherwise = {**PLAN.resolved, "report": {"use": "quiet"}}
    assert unfinished(tmp_path, replace(PLAN, resolved=told_otherwise)) == folder


def test_runs_of_another_configuration_or_name_are_not_taken(tmp_path: Path) -> None:
    interrupted(tmp_path, PLAN)
    assert unfinished(tmp_path, small_plan(PLAIN, steps=7)) is None
    assert unfinished(tmp_path, small_plan(PLAIN, steps=6, name="r")) is None
    assert unfinished(tmp_path / "elsewhere", PLAN) is None


def test_a_finished_run_is_not_gone_on_with_even_if_an_older_one_could(tmp_path: Path) -> None:
    interrupted(tmp_path, PLAN)
    run_small(tmp_path, PLAN)
    assert unfinished(tmp_path, PLAN) is None


def test_a_run_without_a_checkpoint_is_not_gone_on_with(tmp_path: Path) -> None:
    create(tmp_path, PLAN)
    assert unfinished(tmp_path, PLAN) is None
