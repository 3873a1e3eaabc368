"""The support matrix says what the code does."""

from __future__ import annotations

import os
import subprocess
import sys

import support


def test_the_page_is_what_the_code_makes() -> None:
    """In a process of its own: checked shapes would make it three times as long."""
    done = subprocess.run(
        [sys.executable, support.__file__, "--check"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_combination_that_is_refused_says_why() -> None:
    case = support.LAYERS["`nn.Linear`"]
    places = {place: {"use": "low-rank"} for place in support.TAKES["singd"]}
    assert "Group" in support.attempt("singd", case, "float32", places, labels="data")


def test_layers_with_an_adapter_are_trained_by_methods_of_layers_and_others_by_their_fallback() -> None:
    assert not any(support.treatment("kfac", support.LAYERS["`nn.Conv2d`"]))
    assert all(support.treatment("kfac", support.OTHERS["`nn.LayerNorm`"]))
