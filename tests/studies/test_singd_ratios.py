"""The command that holds SINGD's steps to their bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.studies.conftest import Script


def lines(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()[1:]]


def test_a_row_for_each_comparison_and_a_verdict(
    script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = script("singd_ratios")
    loose = replace(ratios.CONTENDERS["diagonal"], adamw=1000.0, package=1000.0)
    monkeypatch.setitem(ratios.CONTENDERS, "diagonal", loose)
    assert ratios.main(["--only", "diagonal", "--rounds", "1"]) == 0
    found = lines(capsys.readouterr().out)
    assert [(row[0], row[1], row[2]) for row in found] == [
        ("diagonal", "10", "AdamW"),
        ("diagonal", "1", "package"),
        ("diagonal", "10", "package"),
    ]
    assert all(float(row[-2]) == pytest.approx(0.504, abs=1e-3) for row in found), "ours: half of AdamW's"
    assert [float(row[-1]) for row in found] == pytest.approx([1.0, 0.504, 0.504], abs=1e-3)


def test_a_missed_bound_fails(
    script: Script, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = script("singd_ratios")
    monkeypatch.setitem(
        ratios.CONTENDERS, "diagonal", replace(ratios.CONTENDERS["diagonal"], adamw=0.001, package=None)
    )
    assert ratios.main(["--only", "diagonal", "--rounds", "1", "--against", "adamw"]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_every_round_runs_every_pair_until_it_has_enough(script: Script) -> None:
    pairs = script("pairs")
    order: list[str] = []

    def subject(name: str) -> object:
        return pairs.Subject(lambda: order.append(name), lambda: 0)

    base, often, once = subject("base"), subject("often"), subject("once")
    asked = {"often": pairs.Pair(often, base, 2, 1), "once": pairs.Pair(once, base, 1, 1, rounds=1)}
    order.clear()
    with pytest.MonkeyPatch.context() as patch:
        ticks = iter(range(10**6))
        patch.setattr(pairs.time, "process_time", lambda: next(ticks))
        found = pairs.interleaved(asked, 2)
    warm_up = ["base", "often", "often", "base", "once"]
    assert order == [*warm_up, *warm_up, *warm_up[:3]]
    assert found == {"often": [0.5, 0.5], "once": [1.0]}, "times are per step"
