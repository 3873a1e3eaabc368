"""A step's record: where in the run it is, then its facts."""

from __future__ import annotations

from dataclasses import fields

from curvlab.protocols.report import StepFacts, StepRecord


def test_a_record_is_a_position_followed_by_the_facts_in_their_order() -> None:
    names = [f.name for f in fields(StepRecord)]
    assert names == ["step", "epoch", "examples", "seconds", *(f.name for f in fields(StepFacts))]


def test_the_facts_of_a_step_make_its_record() -> None:
    facts = StepFacts(loss=0.5, lr=0.1, products=3)
    record = StepRecord(4, 0.5, 64, 1.5, **vars(facts))
    assert {name: getattr(record, name) for name in vars(facts)} == vars(facts)
    assert (record.step, record.epoch, record.examples, record.seconds) == (4, 0.5, 64, 1.5)
