"""The checker of shapes checks: functions, methods and records, and arrays only."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.vectors import BlockLayout, BlockVector, Outer
from curvlab.objective.loss import weighted
from tests.shapes import checked


def test_a_record_with_shapes_that_disagree_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="right"):
        Outer(torch.zeros(2, 3), torch.zeros(4, 5))


def test_a_method_is_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="flat"):
        BlockVector(BlockLayout({"a": (2, 3)}), torch.zeros(2, 3))


def test_a_function_of_ours_is_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="terms"):
        weighted(torch.zeros(2, 3), 1.0)


def test_arguments_and_result_are_checked() -> None:
    def transposed(x: Float[Tensor, "n d"], scale: NotThere = 2) -> Float[Tensor, "d n"]:  # noqa: F821
        return x * scale

    wrapped = checked(transposed)
    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        wrapped(torch.zeros(2, 3))
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'x'"):
        wrapped(torch.zeros(2))
    assert wrapped(torch.zeros(3, 3)).shape == (3, 3)


def test_what_has_no_arrays_is_left_alone() -> None:
    def generous(x: float, y: Tensor | None = None) -> str | None:
        return None

    assert checked(generous) is generous
