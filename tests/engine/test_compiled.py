"""Compiled models are trained as those that are not, or refused in words; their layers are never unheard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.compiled_models import LOOPS

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("compiled") / "found.pt"
    path = [str(ROOT), *map(str, ROOT.glob("plugins/*/")), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "compiled_models.py"), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["wrapped", "in place"])
@pytest.mark.parametrize(("method", "plain"), LOOPS)
def test_a_compiled_model_is_trained_as_one_that_is_not(
    found: dict[str, Any], method: str, plain: bool, how: str
) -> None:
    for mine, theirs in zip(
        found[f"{method}, {plain}, {how}"], found[f"{method}, {plain}, not"], strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "objective"])
def test_a_model_that_was_wrapped_and_called_before_is_refused(found: dict[str, Any], plain: bool) -> None:
    """torch has then taken it apart, and asks no layer any more whether somebody listens."""
    assert "make the optimizer" in found[f"called, {plain}, wrapped"]


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "objective"])
def test_a_model_compiled_in_place_may_have_been_called(found: dict[str, Any], plain: bool) -> None:
    for mine, theirs in zip(found[f"called, {plain}, in place"], found[f"singd, {plain}, not"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
