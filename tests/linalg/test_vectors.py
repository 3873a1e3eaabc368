"""Block vectors: factored arithmetic is dense arithmetic, and living vectors share no memory by accident."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvlab.linalg.buffer import KEEP
from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.testing.asserts import assert_close

DTYPE = torch.float64
Dense = dict[str, Tensor]

quick = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def layouts(draw: st.DrawFn) -> BlockLayout:
    """One to four blocks: matrices, and vectors that are never held factored."""
    small = st.integers(1, 4)
    shapes = draw(st.lists(st.one_of(st.tuples(small, small), st.tuples(small)), min_size=1, max_size=4))
    return BlockLayout({f"b{k}": shape for k, shape in enumerate(shapes)})


@st.composite
def vectors(draw: st.DrawFn, layout: BlockLayout) -> tuple[BlockVector, Dense]:
    """A vector some of whose matrices are held factored, and its dense twin."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DTYPE)

    vector, twin = layout.zeros(like=normal(1)), {}
    for name, shape in layout.shapes.items():
        if len(shape) == 2 and draw(st.booleans()):
            rows = draw(st.integers(1, 5))
            outer = Outer(normal(rows, shape[0]), normal(rows, shape[1]))
            vector.outers[name] = outer
            vector._view(name).fill_(math.nan)  # what stands in the buffer until then is nobody's business
            twin[name] = outer.left.mT @ outer.right
        else:
            vector._view(name).copy_(normal(*shape))
            twin[name] = vector._view(name).clone()
    return vector, twin


def dense(vector: BlockVector) -> Dense:
    """The blocks of a vector, without telling it."""
    held = {name: vector.factored(name) for name in vector}
    return {n: h.left.mT @ h.right if isinstance(h, Outer) else h.clone() for n, h in held.items()}


def same(vector: BlockVector, twin: Dense) -> None:
    size = max(float(t.abs().max()) for t in twin.values())
    for name, block in dense(vector).items():
        assert_close(block, twin[name], dimension=16, scale=max(size, 1.0), what=name)


Operation = tuple[Callable[[BlockVector, BlockVector], BlockVector], Callable[[Tensor, Tensor], Tensor]]

#: operations that return a new vector, on vectors and on their dense twins
PURE: dict[str, Operation] = {
    "u + v": (lambda u, v: u + v, lambda a, b: a + b),
    "u − v": (lambda u, v: u - v, lambda a, b: a - b),
    "plus": (lambda u, v: u.plus(v, 0.3), lambda a, b: a + 0.3 * b),
    "−u": (lambda u, v: -u, lambda a, b: -a),
    "2 u": (lambda u, v: 2.0 * u, lambda a, b: 2 * a),
    "u times a tensor": (lambda u, v: u * torch.tensor(0.5, dtype=DTYPE), lambda a, b: 0.5 * a),
    "clone": (lambda u, v: u.clone(), lambda a, b: a),
    "zeros_like": (lambda u, v: u.zeros_like(), lambda a, b: 0 * a),
    "to itself": (lambda u, v: u.to(DTYPE), lambda a, b: a),
    "borrow": (lambda u, v: u.borrow(), lambda a, b: a),
    "owned": (lambda u, v: u.owned(), lambda a, b: a),
    "owned after borrowing": (lambda u, v: u.borrow().owned(), lambda a, b: a),
    "restrict to all": (lambda u, v: u.restrict(u.layout), lambda a, b: a),
}

#: operations that change their first vector
IN_PLACE: dict[str, Operation] = {
    "copy_": (lambda u, v: u.copy_(v), lambda a, b: b),
    "add_": (lambda u, v: u.add_(v), lambda a, b: a + b),
    "add_ a multiple": (lambda u, v: u.add_(v, -0.7), lambda a, b: a - 0.7 * b),
    "combine_": (lambda u, v: u.combine_(0.9, v, 0.1), lambda a, b: 0.9 * a + 0.1 * b),
    "combine_ as momentum does": (lambda u, v: u.combine_(0.9, v), lambda a, b: 0.9 * a + b),
    "scale_": (lambda u, v: u.scale_(-2.0), lambda a, b: -2 * a),
    "scale_ by a tensor": (lambda u, v: u.scale_(torch.tensor(3.0, dtype=DTYPE)), lambda a, b: 3 * a),
    "zero_": (lambda u, v: u.zero_(), lambda a, b: 0 * a),
}


@pytest.mark.parametrize("name", PURE)
@quick
@given(data=st.data())
def test_pure_operations_are_those_of_dense_vectors_and_change_nothing(
    name: str, data: st.DataObject
) -> None:
    on_vectors, on_tensors = PURE[name]
    layout = data.draw(layouts())
    (u, a), (v, b) = data.draw(vectors(layout)), data.draw(vectors(layout))
    same(on_vectors(u, v), {n: on_tensors(a[n], b[n]) for n in a})
    same(u, a)
    same(v, b)


@pytest.mark.parametrize("name", IN_PLACE)
@quick
@given(data=st.data())
def test_operations_in_place_are_those_of_dense_vectors_and_change_only_the_first(
    name: str, data: st.DataObject
) -> None:
    on_vectors, on_tensors = IN_PLACE[name]
    layout = data.draw(layouts())
    (u, a), (v, b) = data.draw(vectors(layout)), data.draw(vectors(layout))
    assert on_vectors(u, v) is u
    same(u, {n: on_tensors(a[n], b[n]) for n in a})
    same(v, b)


@quick
@given(data=st.data())
def test_numbers_read_off_vectors_are_those_of_dense_ones(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    (u, a), (v, b) = data.draw(vectors(layout)), data.draw(vectors(layout))
    assert u.is_finite()
    size = layout.size * 5
    whole_a, whole_b = (torch.cat([t.flatten() for t in twin.values()]) for twin in (a, b))
    scale = float(whole_a.norm() * whole_b.norm())
    assert_close(u.dot(v), whole_a @ whole_b, dimension=size, scale=scale, what="⟨u, v⟩")
    assert_close(u.norm(), whole_a.norm(), dimension=size, what="‖u‖")
    assert_close(u.flat, whole_a, dimension=5, scale=float(whole_a.abs().max()))
    assert not u.outers
    same(u, a)


@quick
@given(data=st.data())
def test_reading_one_block_multiplies_out_that_block_alone(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    u, a = data.draw(vectors(layout))
    held = set(u.outers)
    name = data.draw(st.sampled_from(layout.names))
    assert_close(u[name], a[name], dimension=5, scale=float(a[name].abs().max()) or 1.0)
    assert set(u.outers) == held - {name}
    same(u, a)
    assert {n for n, _ in u.items()} == set(layout.names)
    assert not u.outers


@quick
@given(data=st.data())
def test_a_restriction_keeps_values_factors_and_its_own_memory(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    u, a = data.draw(vectors(layout))
    names = tuple(data.draw(st.lists(st.sampled_from(layout.names), unique=True, min_size=1)))
    part = u.restrict(layout.restrict(names))
    assert tuple(part) == names
    assert set(part.outers) == set(u.outers) & set(names)
    same(part, {n: a[n] for n in names})
    if names != layout.names:
        part.zero_()
    else:
        assert part is u, "nothing is left out, so nothing need be copied"
        return
    same(u, a)


@quick
@given(data=st.data())
def test_a_borrowed_vector_reads_as_its_owner_does(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    u, a = data.draw(vectors(layout))
    other = u.borrow()
    assert other.borrowed
    assert not u.borrowed
    same(other, a)
    other.flat  # noqa: B018  reading multiplies out, for both
    assert not u.outers
    same(u, a)
    mine = other.owned()
    assert not mine.borrowed
    mine.zero_()
    same(u, a)


@quick
@given(data=st.data())
def test_products_with_a_number_keep_factors(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    u, _ = data.draw(vectors(layout))
    held = set(u.outers)
    assert set((3.0 * u).outers) == held
    assert set(u.outers) == held


@quick
@given(data=st.data())
def test_inner_products_of_factored_blocks_multiply_nothing_out(data: st.DataObject) -> None:
    """Where two rank-one blocks of 4 × 4 meet, the factors are cheaper."""
    layout = BlockLayout({"w": (4, 4)})
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    u, v = layout.zeros(like=torch.zeros(1, dtype=DTYPE)), layout.zeros(like=torch.zeros(1, dtype=DTYPE))
    for vector in (u, v):
        left, right = torch.randn(2, 1, 4, generator=generator, dtype=DTYPE)
        vector.outers["w"] = Outer(left, right)
    expected = torch.sum(dense(u)["w"] * dense(v)["w"])
    assert_close(u.dot(v), expected, dimension=16, scale=16.0)
    assert set(u.outers) == set(v.outers) == {"w"}


@pytest.mark.parametrize("where", ["left", "right", "buffer"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_found_wherever_it_is(where: str, bad: float) -> None:
    layout = BlockLayout({"w": (2, 3), "b": (2,)})
    u = layout.zeros(like=torch.zeros(1, dtype=DTYPE))
    outer = Outer(torch.ones(2, 2, dtype=DTYPE), torch.ones(2, 3, dtype=DTYPE))
    u.outers["w"] = outer
    assert u.is_finite()
    {"left": outer.left, "right": outer.right, "buffer": u["b"]}[where].view(-1)[1] = bad
    assert not u.is_finite()
    u.flat  # noqa: B018
    assert not u.is_finite()


def test_sums_that_overflow_are_not_mistaken_for_values_that_do() -> None:
    layout = BlockLayout({"b": (3,)})
    u = BlockVector(layout, torch.full((3,), 0.5 * torch.finfo(DTYPE).max, dtype=DTYPE))
    assert not math.isfinite(float(u.flat.sum()))
    assert u.is_finite()


def test_vectors_over_other_blocks_do_not_mix() -> None:
    u = BlockLayout({"a": (2,)}).zeros(like=torch.zeros(1))
    v = BlockLayout({"b": (2,)}).zeros(like=torch.zeros(1))
    for mix in (
        lambda: u + v,
        lambda: u.dot(v),
        lambda: u.add_(v),
        lambda: u.copy_(v),
        lambda: u.combine_(1.0, v),
    ):
        with pytest.raises(ValueError, match="different blocks"):
            mix()
    turned = BlockLayout({"y": (2,), "x": (2,)}).zeros(like=torch.zeros(1))
    with pytest.raises(ValueError, match="they have another order"):
        BlockLayout({"x": (2,), "y": (2,)}).zeros(like=torch.zeros(1)).add_(turned)
    with pytest.raises(ValueError, match=r"shape \(3,\); its layout needs \(2,\)"):
        BlockVector(u.layout, torch.zeros(3))


def test_layouts_are_compared_by_content_and_order() -> None:
    a, b = BlockLayout({"x": (2, 3), "y": (4,)}), BlockLayout({"x": torch.Size((2, 3)), "y": (4,)})
    assert a == b
    assert hash(a) == hash(b)
    assert a != BlockLayout({"x": (3, 2), "y": (4,)})
    assert a != BlockLayout({"y": (4,), "x": (2, 3)}), "the same blocks at other offsets"
    assert a.offsets == {"x": (0, 6), "y": (6, 10)}
    assert a.size == 10
    vector = a.zeros(like=torch.zeros(1))
    assert list(vector) == ["x", "y"]
    assert len(vector) == 2
    assert "x" in vector
    assert "z" not in vector


def test_another_dtype_is_a_copy() -> None:
    u = BlockLayout({"b": (3,)}).zeros(like=torch.zeros(1, dtype=DTYPE))
    wide = u.to(torch.float32)
    assert wide.dtype == torch.float32
    wide.flat.fill_(1.0)
    assert float(u.flat.sum()) == 0.0
    assert u.to(DTYPE) is u


# recycling


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_recycled_buffers_never_alias_living_vectors(data: st.DataObject) -> None:
    """Make and hand back vectors in any order, each once: the living keep their values."""
    layout = BlockLayout({"w": (2, 2), "b": (3,)})
    like, living = torch.zeros(1, dtype=DTYPE), dict[float, BlockVector]()
    for k in range(data.draw(st.integers(1, 25))):
        if living and data.draw(st.booleans()):
            gone = data.draw(st.lists(st.sampled_from(sorted(living)), unique=True, min_size=1))
            for value in gone:
                layout.recycle(living.pop(value))
        else:
            living[float(k)] = layout.empty(like=like)
            living[float(k)].flat.fill_(float(k))
        for value, vector in living.items():
            assert bool((vector.flat == value).all())
        assert len({v.flat.data_ptr() for v in living.values()}) == len(living)


def test_borrowed_vectors_and_aliases_are_not_taken_back() -> None:
    layout, like = BlockLayout({"b": (3,)}), torch.zeros(1, dtype=DTYPE)
    state = layout.zeros(like=like)
    layout.recycle(state.borrow())
    assert layout.empty(like=like).flat.data_ptr() != state.flat.data_ptr()
    twice = layout.zeros(like=like)
    for vector in (twice, twice, BlockVector(layout, twice.flat)):
        layout.recycle(vector)
    first, second = layout.empty(like=like), layout.empty(like=like)
    assert first.flat.data_ptr() != second.flat.data_ptr()


def test_only_a_few_buffers_are_kept_and_only_for_their_dtype() -> None:
    layout = BlockLayout({"b": (3,)})
    for _ in range(10):
        layout.recycle(layout.zeros(like=torch.zeros(1, dtype=DTYPE)))
    assert len(layout._recycled._free) == KEEP
    assert layout.empty(like=torch.zeros(1)).dtype == torch.float32
    assert len(layout._recycled._free) == KEEP
    assert layout.empty(like=torch.zeros(1, dtype=DTYPE)).dtype == DTYPE
    assert len(layout._recycled._free) == KEEP - 1


def test_what_a_recycled_buffer_held_is_never_seen() -> None:
    """A factored block is dropped with its vector: the next owner of the buffer starts without factors."""
    layout, like = BlockLayout({"w": (2, 2)}), torch.zeros(1, dtype=DTYPE)
    old: Any = layout.zeros(like=like)
    old.outers["w"] = Outer(torch.ones(1, 2, dtype=DTYPE), torch.ones(1, 2, dtype=DTYPE))
    layout.recycle(old)
    fresh = layout.empty(like=like)
    assert not fresh.outers
    fresh.zero_()
    assert float(fresh.flat.abs().sum()) == 0.0


def test_parts_are_views_that_last_as_long_as_the_buffer() -> None:
    """Of a borrowed vector, and of one in a recycled buffer, they are the same."""
    layout = BlockLayout({"x": (2, 3), "y": (4,)})
    u = layout.zeros(like=torch.zeros(1))

    def halves(v: BlockVector) -> dict[str, Tensor]:
        return {"left": v["x"][:, :1], "right": v["x"][:, 1:]}

    u.parts("halves", halves)["left"].fill_(1.0)
    assert torch.equal(u.flat, torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0, 0, 0]))
    assert u.borrow().parts("halves", halves) is u.parts("halves", halves)
    assert u.parts("others", lambda v: {"all": v["x"]})["all"] is u["x"]
    layout.recycle(u)
    again = layout.empty(like=torch.zeros(1))
    assert again.parts("halves", halves)["left"].data_ptr() == again["x"].data_ptr() == u["x"].data_ptr()


def test_parts_of_a_block_that_is_factored_are_of_its_matrix() -> None:
    """Also if it was factored once more after they were cut."""
    layout = BlockLayout({"x": (2, 3)})
    u = layout.empty(like=torch.zeros(1))
    for factor in (1.0, 2.0):
        u.outers["x"] = Outer(torch.full((4, 2), factor), torch.ones(4, 3))
        rows = u.parts("rows", lambda v: {"row": v["x"][0]})
        assert torch.equal(rows["row"], torch.full((3,), 4.0 * factor))


@pytest.mark.parametrize("one", [1.0, torch.ones(()), torch.ones((), dtype=torch.float64)], ids=str)
def test_scaled_by_one_a_vector_stays_bit_for_bit(one: float | Tensor) -> None:
    layout = BlockLayout({"x": (2, 3), "y": (4,)})
    u = layout.zeros(like=torch.zeros(1))
    u.flat.normal_()
    u.outers["x"] = Outer(torch.rand(4, 2), torch.rand(4, 3))
    before, factors = u["y"].clone(), u.outers["x"]
    u.scale_(one)
    assert u.outers["x"] is factors
    assert torch.equal(u["y"], before)
