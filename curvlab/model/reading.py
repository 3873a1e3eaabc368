"""Readings: what a torch function's arguments say about the use of a parameter among them.

The functions of ``READINGS`` take their torch function's arguments under torch's own names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.model.parameter_use import Kind, ParameterUse, Part

Find = Callable[[Any], Part | None]

#: why an operand is no activation
ANOTHER = "with another parameter"


def unread(function: str, part: Part, output: Tensor, how: str = "") -> ParameterUse:
    """A use of a part that no row describes."""
    if part.layout == "other":
        how = "in a view other than whole rows or their transpose"
    return ParameterUse("unread", part, output, function, reason=f"used by {function} {how}".rstrip())


def linear(
    name: str, find: Find, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Iterator[ParameterUse]:
    """``input weightᵀ + bias``."""
    yield from _product(name, find, output, input, find(weight), find(bias), transposed=False)


def matmul(name: str, find: Find, output: Tensor, input: Tensor, other: Tensor) -> Iterator[ParameterUse]:
    """``input other``; a parameter on the left is no weight here."""
    yield from _product(name, find, output, input, find(other), None, transposed=True)


def mm(name: str, find: Find, output: Tensor, input: Tensor, mat2: Tensor) -> Iterator[ParameterUse]:
    """``input mat2``."""
    return matmul(name, find, output, input, mat2)


def addmm(
    name: str,
    find: Find,
    output: Tensor,
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Iterator[ParameterUse]:
    """``beta input + alpha mat1 mat2``, read where both factors are 1."""
    weight, bias = find(mat2), find(input)
    if alpha == beta == 1:
        yield from _product(name, find, output, mat1, weight, bias, transposed=True)
    else:
        yield from (unread(name, p, output, "with alpha or beta") for p in (find(mat1), weight, bias) if p)


def _product(
    name: str,
    find: Find,
    output: Tensor,
    x: Tensor,
    weight: Part | None,
    bias: Part | None,
    transposed: bool,
) -> Iterator[ParameterUse]:
    """``transposed``: of ``x weight``; otherwise of ``x weightᵀ``."""
    if (own := find(x)) is not None:
        yield unread(name, own, output, "as an input")
    if own is not None or _is_parameter(x):
        yield from (unread(name, p, output, ANOTHER) for p in (weight, bias) if p)
        return
    added = bias if bias is not None and _spans(bias, output) else None
    if bias is not None and added is None:
        yield unread(name, bias, output, "as a bias of another shape")
    if weight is not None and weight.is_matrix():
        kind: Kind = "linear" if (weight.layout == "transposed") == transposed else "transposed linear"
        yield ParameterUse(kind, weight, output, name, x.detach(), added)
        return
    if weight is not None:
        yield unread(name, weight, output, "as no matrix")
    if added is not None:
        yield ParameterUse("shift", added, output, name)


def _is_parameter(x: Any) -> bool:
    """Whether an operand is a parameter, captured or not: what is made of it has no examples."""
    return isinstance(x, nn.Parameter) or (isinstance(x, Tensor) and isinstance(x._base, nn.Parameter))


def _spans(part: Part, output: Tensor) -> bool:
    """Whether a part has one entry for each of the output's last axis."""
    return part.is_vector() and output.dim() > 0 and part.stop - part.start == output.shape[-1]


def embedding(
    name: str,
    find: Find,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Iterator[ParameterUse]:
    """Rows of ``weight``, read where neither the weight nor its gradient is scaled."""
    part = find(weight)
    if part is None:
        return
    if max_norm is not None or scale_grad_by_freq:
        yield unread(name, part, output, "with max_norm or scale_grad_by_freq")
    elif part.layout != "rows":
        yield unread(name, part, output)
    else:
        padding = None if padding_idx is None else padding_idx % (part.stop - part.start)
        yield ParameterUse("lookup", part, output, name, input.detach(), padding=padding)


def mul(name: str, find: Find, output: Tensor, input: Any, other: Any) -> Iterator[ParameterUse]:
    """``input * other``, a scale where one of them is a vector and the other is an activation."""
    yield from _elementwise(name, find, output, "scale", input, other)


def add(
    name: str, find: Find, output: Tensor, input: Any, other: Any, *, alpha: float = 1
) -> Iterator[ParameterUse]:
    """``input + alpha other``, a shift where one of them is a vector and the other is an activation."""
    part = find(other)
    if part is not None and alpha != 1:
        yield from (unread(name, p, output, "with alpha") for p in (find(input), part) if p)
    else:
        yield from _elementwise(name, find, output, "shift", input, other)


def _elementwise(
    name: str, find: Find, output: Tensor, kind: Kind, one: Any, other: Any
) -> Iterator[ParameterUse]:
    parts = [(part, x) for part, x in ((find(one), other), (find(other), one)) if part is not None]
    for part, x in parts:
        broadcast = isinstance(x, Tensor) and x.dim() > 1 and _spans(part, x)
        if _is_parameter(x) or len(parts) > 1:
            yield unread(name, part, output, ANOTHER)
        elif broadcast:
            yield ParameterUse(kind, part, output, name, x.detach() if kind == "scale" else None)
        else:
            yield unread(name, part, output, "other than one entry for each of the last axis")


Reading = Callable[..., Iterable[ParameterUse]]


def _swapped(reading: Reading) -> Reading:
    def read(name: str, find: Find, output: Tensor, input: Any, other: Any) -> Iterable[ParameterUse]:
        return reading(name, find, output, other, input)

    return read


#: by torch function; what changes its input in place is here only where the input's value does not matter
READINGS: Mapping[Callable[..., Any], Reading] = {
    F.linear: linear,
    F.embedding: embedding,
    torch.addmm: addmm,
    Tensor.addmm: addmm,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), matmul),
    Tensor.__rmatmul__: _swapped(matmul),
    **dict.fromkeys((torch.mm, Tensor.mm), mm),
    **dict.fromkeys((torch.mul, torch.multiply, Tensor.mul, Tensor.multiply), mul),
    **dict.fromkeys((Tensor.__mul__, Tensor.__rmul__), mul),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), add),
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), add),
}
