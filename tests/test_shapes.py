"""The checker of shapes checks: functions, methods and records, and arrays only."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.objectives.semidefinite import eigen
from tests.shapes import checked


def test_a_record_with_shapes_that_disagree_is_refused() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="right"):
        Outer(torch.zeros(2, 3), torch.zeros(4, 5))


def test_a_method_is_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="flat"):
        BlockVector(BlockLayout({"a": (2, 3)}), torch.zeros(2, 3))


def test_a_function_of_ours_is_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="hessians"):
        eigen(torch.zeros(2, 3), "", "")


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


def test_a_result_is_checked_also_where_the_arguments_were_seen_before() -> None:
    """What was checked is remembered by the shapes and dtypes of arguments and result together."""
    answers = [torch.zeros(3, 2), torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)]
    runs = []

    def transposed(x: Float[Tensor, "n d"], *, k: int = 0) -> Float[Tensor, "d n"]:
        runs.append(k)
        return answers[k]

    wrapped, x = checked(transposed), torch.zeros(2, 3)
    for k in (0, 2, 0):
        assert wrapped(x, k=k) is answers[k]
    for k in (1, 3):
        for _ in range(2):  # a claim that did not hold is not remembered as one that did
            with pytest.raises(jaxtyping.TypeCheckError, match="return"):
                wrapped(x, k=k)
    for other in (torch.zeros(2, 3, 1), torch.zeros(2, 3, dtype=torch.int64), None):
        with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'x'"):
            wrapped(other)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'x'"):
        wrapped(x=torch.zeros(2))
    assert runs == [0, 2, 0, 1, 1, 3, 3]  # the function itself runs once a call, and not on wrong arguments


def test_arrays_within_tuples_and_unions_are_told_apart() -> None:
    def both(pair: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]], x: Float[Tensor, "n d"] | None) -> None:
        return None

    wrapped, two, three = checked(both), torch.zeros(2, 4), torch.zeros(3, 4)
    wrapped((two, two), None)
    wrapped((two, two), two)
    for pair, x in (((two, three), None), ((two, two), three), ((three, three), two)):
        with pytest.raises(jaxtyping.TypeCheckError):
            wrapped(pair, x)
