"""The command that puts numbers that are not finite into training, on a few methods."""

from __future__ import annotations

import pytest

from tests.studies.conftest import Script


def test_no_injection_is_silent_or_leaves_a_trace(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("injections").main(["--only", "sgd", "adamw", "kfac", "singd"]) == 0
    assert "96 injections, 0 silent" in capsys.readouterr().out
