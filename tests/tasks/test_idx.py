"""The IDX reader: what it accepts, and that every kind of damage is named."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvlab.errors import DataError
from curvlab.tasks.idx import read_idx


def idx(array: np.ndarray, *, code: int = 8, zeros: int = 0) -> bytes:
    head = struct.pack(">HBB", zeros, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(np.uint8).tobytes()


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@settings(deadline=None, max_examples=25)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=3), gz=st.booleans(), seed=st.integers(0, 99))
def test_what_was_written_is_read(
    shape: list[int], gz: bool, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(idx(array)) if gz else idx(array))
    got = read_idx(path, tuple(None for _ in shape))
    assert np.array_equal(got, array)


DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "a header cut short": (idx(ARRAY)[:10], "too short"),
    "data cut short": (idx(ARRAY)[:-1], "cut short: 23 bytes"),
    "data too long": (idx(ARRAY) + b"\0", "too long: 25 bytes"),
    "another type": (idx(ARRAY, code=0x0D), "magic number 0x00000d03, expected 0x00000803"),
    "not IDX": (idx(ARRAY, zeros=0x504B), "magic number 0x504b"),
    "other axes": (idx(ARRAY.reshape(6, 4)), "magic number 0x00000802"),
    "another shape": (idx(ARRAY.reshape(2, 4, 3)), "shape [2, 4, 3], expected ['any', 3, 4]"),
    "gzip cut short": (gzip.compress(idx(ARRAY))[:-9], "damaged or incomplete"),
    "gzip damaged": (gzip.compress(idx(ARRAY))[:12] + b"\xff" * 20, "damaged or incomplete"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_the_file(damage: str, tmp_path: Path) -> None:
    data, says = DAMAGE[damage]
    path = tmp_path / "train-images"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_idx(path, (None, 3, 4))
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "nothing", (None,))
