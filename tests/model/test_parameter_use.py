"""Which views of a parameter are rows of it, found from shapes and strides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curvlab.model.parameter_use import part_of

ROWS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "itself": ((6, 3), lambda w: w),
    "a slice": ((6, 3), lambda w: w[1:4]),
    "a slice of a slice": ((6, 3), lambda w: w[1:5][1:]),
    "the last of three": ((6, 3), lambda w: w.chunk(3)[2]),
    "a split": ((6, 3), lambda w: w.split([1, 5])[1]),
    "narrowed": ((6, 3), lambda w: w.narrow(0, 2, 2)),
    "one row": ((6, 3), lambda w: w[4:5]),
    "a bias": ((6,), lambda w: w[2:5]),
    "one entry": ((6,), lambda w: w[5:]),
    "experts": ((4, 3, 2), lambda w: w[1:3]),
    "one output": ((1, 3), lambda w: w[:1]),
    "one input": ((6, 1), lambda w: w[2:]),
    "a view of its own shape": ((6, 3), lambda w: w.view(6, 3)),
    "transposed twice": ((6, 3), lambda w: w.t().t()),
}
TRANSPOSED: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "t": ((6, 3), lambda w: w.t()),
    "T": ((6, 3), lambda w: w.T),
    "mT": ((6, 3), lambda w: w.mT),
    "transpose": ((6, 3), lambda w: w.transpose(0, 1)),
    "permute": ((6, 3), lambda w: w.permute(1, 0)),
    "square": ((3, 3), lambda w: w.T),
    "a slice": ((6, 3), lambda w: w[1:4].T),
    "columns of the transpose": ((6, 3), lambda w: w.T[:, 1:4]),
    "one output": ((1, 3), lambda w: w.T),
    "one input": ((6, 1), lambda w: w.T[:, 2:]),
}
OTHER: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "columns": ((6, 3), lambda w: w[:, 1:]),
    "rows of columns": ((6, 3), lambda w: w[1:4, :2]),
    "one row without its axis": ((6, 3), lambda w: w[2]),
    "every second row": ((6, 3), lambda w: w[::2]),
    "every second entry": ((6,), lambda w: w[::2]),
    "another shape": ((6, 3), lambda w: w.view(3, 6)),
    "flattened": ((6, 3), lambda w: w.view(18)),
    "expanded": ((1, 3), lambda w: w.expand(5, 3)),
    "an axis more": ((6,), lambda w: w[None]),
    "the diagonal": ((3, 3), lambda w: w.diagonal()),
    "no rows": ((6, 3), lambda w: w[2:2]),
    "experts transposed": ((4, 3, 3), lambda w: w.mT),
    "one number": ((6,), lambda w: w[2]),
    "overlapping": ((6, 3), lambda w: w.as_strided((5, 3), (3, 1), 1)),
}


def parameter(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.arange(float(torch.Size(shape).numel())).reshape(shape))


@pytest.mark.parametrize(("shape", "made"), ROWS.values(), ids=ROWS)
def test_rows_are_known(shape: tuple[int, ...], made: Callable[[Tensor], Tensor]) -> None:
    w = parameter(shape)
    part = part_of(made(w), w)
    assert part.layout == "rows"
    assert torch.equal(w[part.rows], made(w))
    assert part.is_vector() == (w.dim() == 1)
    assert part.is_matrix() == (w.dim() == 2)


@pytest.mark.parametrize(("shape", "made"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_rows_are_known(shape: tuple[int, ...], made: Callable[[Tensor], Tensor]) -> None:
    w = parameter(shape)
    part = part_of(made(w), w)
    assert part.layout == "transposed"
    assert torch.equal(w[part.rows].T, made(w))
    assert part.is_matrix()


@pytest.mark.parametrize(("shape", "made"), OTHER.values(), ids=OTHER)
def test_other_views_are_distinguished(shape: tuple[int, ...], made: Callable[[Tensor], Tensor]) -> None:
    w = parameter(shape)
    part = part_of(made(w), w)
    assert part.layout == "other"
    assert not part.is_matrix()
    assert not part.is_vector()


def test_a_parameter_that_lies_within_a_buffer_counts_from_its_own_start() -> None:
    w = nn.Parameter(torch.arange(30.0)[6:24].view(6, 3))
    part = part_of(w[2:4], w)
    assert (part.start, part.stop) == (2, 4)
    for outside in (w.as_strided((2, 3), (3, 1), 3), w.as_strided((2, 3), (3, 1), 21)):
        assert part_of(outside, w).layout == "other"


def test_a_parameter_of_another_layout_in_memory() -> None:
    w = nn.Parameter(torch.arange(18.0).view(3, 6).T)
    for view, layout in ((w[1:3], "rows"), (w[1:3].T, "transposed"), (w[:, 1:], "other")):
        assert part_of(view, w).layout == layout
    assert part_of(w[1:3], w).rows == slice(1, 3)
    assert part_of(w[4][None], w).rows == slice(4, 5)  # an axis of one entry may have any stride


def test_a_conjugate_is_another_view() -> None:
    w = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
    assert part_of(w.conj(), w).layout == "other"
    assert part_of(w.T, w).layout == "transposed"


def test_a_number_without_axes_is_itself() -> None:
    w = nn.Parameter(torch.tensor(2.0))
    assert part_of(w, w).rows == slice(0, 1)
    assert not part_of(w, w).is_vector()
