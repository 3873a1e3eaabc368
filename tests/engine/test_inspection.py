"""Inspection: what training would do, told before anything is allocated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from curvlab.config import build, load
from curvlab.engine.inspection import StepCost, inspect
from curvlab.engine.method import Method
from curvlab.engine.training import prepare
from curvlab.errors import CoverageError
from curvlab.parts.damping import Constant
from curvlab.parts.identity import Identity
from curvlab.parts.steps import Rate
from curvlab.protocols.blocks import Block
from curvlab.protocols.needs import Labels, Needs
from curvlab.reporting.rundir import RunDir
from tests.engine.small_run import CURVED, PLAIN, Restless, run_small, small_plan

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@pytest.mark.parametrize("method", [CURVED, PLAIN], ids=["curved", "plain"])
def test_coverage_and_bytes_are_those_of_the_run_itself(method: Method) -> None:
    plan = small_plan(method)
    found = inspect(plan)
    live = prepare(plan, lambda event: None)
    assert list(found.coverage) == live.optimizer.coverage()
    assert found.state_bytes == live.optimizer.state_bytes()
    assert found.parameters == sum(p.numel() for p in live.model.parameters())
    assert found.parameter_bytes == sum(p.nbytes for p in live.model.parameters())


def test_nothing_is_allocated_and_no_data_are_read() -> None:
    class Untouchable(Restless):
        def model(self) -> torch.nn.Module:
            # 4 TB, were it allocated
            return torch.nn.Sequential(torch.nn.Linear(10**6, 10**6))

        def workload(self, model: object, **where: object) -> object:  # type: ignore[override]
            raise AssertionError("data are not to be read")

    found = inspect(small_plan(PLAIN, task=Untouchable()))
    assert found.parameter_bytes == 4 * (10**12 + 10**6)


def test_the_callers_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    inspect(small_plan())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_cost_tells_usual_steps_from_dear_ones() -> None:
    usual, dear = inspect(small_plan(CURVED)).costs  # damping learns on every second step
    assert usual.steps == dear.steps == usual.of_steps // 2 == 15
    assert {usual.losses, dear.losses} == {20, 21}
    assert abs(usual.products - dear.products) == 1


def test_bounds_hold_for_the_run_itself(tmp_path: Path) -> None:
    most = max(cost.products for cost in inspect(small_plan()).costs)
    run = run_small(tmp_path, small_plan(log_every=1, steps=6))
    made = [line.get("products", 0) for line in RunDir(run.folder).steps()]
    assert 0 < max(made) <= most


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Needs(), "1 forward, 1 backward"),
        (Needs(layers=frozenset({Labels.DATA})), "1 forward, 1 backward"),
        (Needs(layers=frozenset({Labels.NONE})), "1 forward, 1 backward"),
        (Needs(layers=frozenset({Labels.MODEL}), samples=1), "1 forward, 2 backwards"),
        (Needs(layers=frozenset({Labels.MODEL, Labels.DATA}), samples=3), "1 forward, 4 backwards"),
        (
            Needs(layers=frozenset({Labels.EXACT})),
            "1 forward, 1 backward, 1 more backward per output",
        ),
        (Needs(products=1, losses=1), "1 forward, 1 backward, at most 1 GGN product, at most 1 trial loss"),
        (
            Needs(products=30, losses=5),
            "1 forward, 1 backward, at most 30 GGN products, at most 5 trial losses",
        ),
    ],
)
def test_needs_are_the_cost(needs: Needs, words: str) -> None:
    assert str(StepCost.of(needs, 1)) == words


def test_parameters_that_nobody_treats_are_refused_as_training_would() -> None:
    class Picky(Identity):
        def refuses(self, block: Block) -> str | None:
            return "too long" if block.shape.numel() > 10 else None

    method = Method(Picky(), Constant(), Rate(0.1))
    with pytest.raises(CoverageError, match="too long"):
        inspect(small_plan(method))


def test_the_document_is_plain_data() -> None:
    document = json.loads(json.dumps(inspect(small_plan()).as_document()))
    numbers = {"parameters", "parameter_bytes", "state_bytes"}
    assert set(document) == {"method", "coverage", "costs", "remark", "shares", *numbers}
    assert document["coverage"][0] == {
        "parameter": "0.weight",
        "shape": [8, 4],
        "block": "0.weight",
        "treatment": "curved",
        "reason": "",
    }
    assert {sum(cost["steps"] for cost in document["costs"])} == {c["of_steps"] for c in document["costs"]}


def test_no_more_steps_are_counted_than_the_run_has() -> None:
    plan = small_plan(PLAIN)
    short = replace(plan, run=replace(plan.run, epochs=None, seconds=None, steps=3))
    (cost,) = inspect(short).costs
    assert (cost.steps, cost.of_steps) == (3, 3)


@pytest.mark.parametrize("method", ["shampoo", "soap", "kl-soap"])
@pytest.mark.parametrize("structure", ["dense", "diagonal"])
def test_factorizations_need_shapes_alone(method: str, structure: str) -> None:
    settings = {"use": method, "structure": structure}
    plan = build(load(data={"run": {"steps": 3}, "task": "digits", "method": settings}))
    assert inspect(plan).state_bytes == prepare(plan, lambda event: None).optimizer.state_bytes()
