"""Mutated configurations end in a message, never in a traceback; ``tests/config/fuzz.py`` runs thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.fuzz import Answer, Fuzz, beyond_schema

FILES, SETS, DRY_RUNS = 30, 15, 2
#: what no schema says: which module exists, which of two settings is larger
LEFT = 2


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Fuzz:
    return Fuzz(seed=15, folder=tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def answers(fuzz: Fuzz) -> list[Answer]:
    return [fuzz.check(number) for number in range(FILES)]


def test_mutated_files_are_answered_and_the_schema_agrees(fuzz: Fuzz, answers: list[Answer]) -> None:
    assert not fuzz.wrong, "\n".join(fuzz.wrong)
    assert {answer.code for answer in answers} == {0, 3}
    parsed, reasons, unjust = beyond_schema(fuzz, answers)
    assert parsed > FILES / 2
    assert reasons.total() <= LEFT, reasons
    assert not unjust


def test_values_of_set_are_answered(fuzz: Fuzz) -> None:
    codes = {fuzz.set(number).code for number in range(SETS)}
    assert not fuzz.wrong, "\n".join(fuzz.wrong)
    assert codes == {0, 2, 3}


def test_dry_runs_of_files_in_order_are_answered(fuzz: Fuzz, answers: list[Answer]) -> None:
    sound = [number for number, answer in enumerate(answers) if answer.code == 0]
    assert len(sound) >= DRY_RUNS
    for number in sound[:DRY_RUNS]:
        assert fuzz.dry_run(number).code == 0
    assert not fuzz.wrong, "\n".join(fuzz.wrong)


def test_a_wrong_answer_is_noticed(fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("not caught by anybody")

    monkeypatch.setattr("curvlab.config.load", broken)
    watched = Fuzz(seed=15, folder=tmp_path, registry=fuzz.registry)
    watched.check(0)
    assert "RuntimeError" in watched.wrong[0]
