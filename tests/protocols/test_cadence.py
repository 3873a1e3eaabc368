"""Cadence: what is due every so many steps."""

from __future__ import annotations

import pytest

from curvlab.protocols.cadence import is_due


@pytest.mark.parametrize("every", [1, 2, 7])
def test_it_is_due_in_step_0_and_then_once_in_as_many_steps(every: int) -> None:
    due = [step for step in range(5 * every) if is_due(step, every)]
    assert due == [0, every, 2 * every, 3 * every, 4 * every]
