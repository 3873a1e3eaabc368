"""The state codec: nested states to named tensors and plain values, and back into fresh ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvlab.engine.state import export, nbytes, restore
from curvlab.errors import CheckpointError
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal

LAYOUT = BlockLayout({"0": (2, 3), "1.bias": (4,)})


@dataclass
class Inner:
    """A record in a record."""

    matrix: Tensor
    ratio: float
    note: str | None


@dataclass
class Outer:
    """Every kind of thing that a state may hold."""

    vector: BlockVector
    by_name: dict[str, Inner]
    each: list[Any]
    nothing: None
    count: int
    on: bool
    scratch: Any = field(default=None, metadata={"transient": True})


def outer(seed: float) -> Outer:
    def inner(k: int) -> Inner:
        return Inner(
            torch.full((2, 2), seed + k, dtype=torch.float64), seed * k, None if seed else "none yet"
        )

    vector = BlockVector(LAYOUT, torch.arange(10.0) * seed)
    each = [torch.tensor(seed), None, [seed > 0, "a"], {"deep": inner(3)}]
    return Outer(vector, {"x": inner(1), "y.z": inner(2)}, each, None, int(seed), seed > 0, object())


def as_plain(state: Any) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    tensors, plain = export(state)
    return {name: tensor.tolist() for name, tensor in tensors.items()}, plain


def test_paths_are_dotted_and_a_vectors_blocks_stand_behind_an_at() -> None:
    tensors, plain = export(outer(1.0))
    assert set(tensors) == {
        "vector@0", "vector@1.bias", "by_name.x.matrix", "by_name.y.z.matrix", "each.0", "each.3.deep.matrix",
    }  # fmt: skip
    assert plain == {
        "by_name.x.ratio": 1.0, "by_name.x.note": None, "by_name.y.z.ratio": 2.0, "by_name.y.z.note": None,
        "each.1": None, "each.2.0": True, "each.2.1": "a", "each.3.deep.ratio": 3.0, "each.3.deep.note": None,
        "nothing": None, "count": 1, "on": True,
    }  # fmt: skip


def test_a_restored_state_is_the_exported_one_and_its_tensors_are_the_ones_it_had() -> None:
    saved, fresh = outer(3.0), outer(0.0)
    held, scratch = fresh.by_name["x"].matrix, fresh.scratch
    restore(fresh, *export(saved))
    assert as_plain(fresh) == as_plain(saved)
    assert fresh.by_name["x"].matrix is held
    assert fresh.scratch is scratch
    assert fresh.vector.flat.tolist() == saved.vector.flat.tolist()


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
STATES = st.recursive(
    VALUES | st.builds(lambda x: ("tensor", x), st.floats(-9, 9, width=32)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60)
@given(drawn=st.lists(STATES, min_size=1, max_size=3))
def test_nested_states_come_back_whatever_their_shape(drawn: list[Any]) -> None:
    def built(x: Any, *, blank: bool) -> Any:
        if isinstance(x, tuple):
            return torch.zeros(()) if blank else torch.tensor(x[1])
        if isinstance(x, list):
            return [built(y, blank=blank) for y in x]
        if isinstance(x, dict):
            return {k: built(y, blank=blank) for k, y in x.items()}
        return None if blank else x

    saved, fresh = built(drawn, blank=False), built(drawn, blank=True)
    restore(fresh, *export(saved))
    assert str(fresh) == str(saved)


def test_what_is_transient_is_neither_exported_nor_counted() -> None:
    state = outer(1.0)
    state.scratch = torch.ones(1000)
    tensors, plain = export(state)
    assert not any("scratch" in name for name in (*tensors, *plain))
    assert nbytes(state) == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize(("family", "scalars"), [(Dense(), 9), (Diagonal(), 3)])
def test_structured_matrices_are_their_tensors(family: Any, scalars: int) -> None:
    state = {"A": family.eye(3, like=torch.zeros(()))}
    tensors, plain = export(state)
    assert sum(t.numel() for t in tensors.values()) == scalars
    assert plain == {}
    assert nbytes(state) == 4 * scalars
    saved = {"A": family.project(torch.diag(torch.tensor([1.0, 2.0, 3.0])))}
    restore(state, *export(saved))
    assert torch.equal(state["A"].dense(), saved["A"].dense())


def test_a_dtype_of_ones_own_is_kept() -> None:
    fresh = {"m": torch.zeros(2, dtype=torch.float32)}
    restore(fresh, {"m": torch.tensor([1.0, 2.0], dtype=torch.float64)}, {})
    assert fresh["m"].dtype == torch.float32
    assert fresh["m"].tolist() == [1.0, 2.0]


def test_a_number_that_is_not_a_number_is_replaced_too() -> None:
    fresh = {"ratio": 1.0}
    restore(fresh, {}, {"ratio": float("nan")})
    assert fresh["ratio"] != fresh["ratio"]
    restore(fresh, {}, {"ratio": 2.0})
    assert fresh == {"ratio": 2.0}


@pytest.mark.parametrize(
    ("tensors", "plain", "says"),
    [
        ({}, {"k": 1}, r"missing \['m'\], unexpected nothing"),
        ({"m": torch.zeros(2), "n": torch.zeros(2)}, {"k": 1}, r"missing nothing, unexpected \['n'\]"),
        ({"m": torch.zeros(3)}, {"k": 1}, r"state 'm': expected shape \(2,\), got \(3,\)"),
        ({"m": torch.zeros(2)}, {}, r"missing \['k'\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_words_and_changes_nothing(
    tensors: dict[str, Tensor], plain: dict[str, Any], says: str
) -> None:
    fresh = {"m": torch.ones(2), "k": 7}
    with pytest.raises(CheckpointError, match=says):
        restore(fresh, tensors, plain)
    assert fresh["m"].tolist() == [1.0, 1.0]
    assert fresh["k"] == 7


def test_a_misfit_after_others_that_fit_changes_nothing_either() -> None:
    fresh = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(CheckpointError, match="state 'b'"):
        restore(fresh, {"a": torch.zeros(2), "b": torch.zeros(3)}, {})
    assert fresh["a"].tolist() == [1.0, 1.0]


def test_a_state_of_anything_else_is_our_own_mistake() -> None:
    with pytest.raises(TypeError, match="state 'x' holds a object"):
        export({"x": object()})
