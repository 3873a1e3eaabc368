"""The checker of shapes checks: in functions, in records, and only arrays."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from jaxtyping import Float, jaxtyped
from torch import Tensor

from curvlab.linalg.vectors import Outer
from tests.shapes import arrays_only


def test_a_record_with_shapes_that_disagree_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="right"):
        Outer(torch.zeros(2, 3), torch.zeros(4, 5))


def test_a_function_is_checked_in_arguments_and_result() -> None:
    @jaxtyped(typechecker=arrays_only)
    def wrong(x: Float[Tensor, "n d"], scale: NotThere = 2) -> Float[Tensor, "d n"]:  # noqa: F821
        return x * scale

    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        wrong(torch.zeros(2, 3))
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'x'"):
        wrong(torch.zeros(2))
    assert wrong(torch.zeros(3, 3)).shape == (3, 3)


def test_what_is_no_array_is_left_to_mypy() -> None:
    @jaxtyped(typechecker=arrays_only)
    def generous(x: float, y: Tensor | None = None) -> str:
        return x

    assert generous(1) == 1
