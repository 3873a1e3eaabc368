"""The IDX format of MNIST and its relatives: big-endian arrays, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curvlab.errors import DataError

#: a file begins with two zero bytes, this code for unsigned bytes, and the number of axes
UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, shape: tuple[int | None, ...]) -> NDArray[np.uint8]:
    """The array of unsigned bytes in ``path``, which must have ``shape`` (``None``: any length).

    Raises ``DataError`` for a file that is not there, not IDX, of another type or shape, cut short or
    too long.
    """
    data = _bytes(path)
    header = 4 + 4 * len(shape)
    if len(data) < header:
        raise DataError(f"{path}: {len(data)} bytes, too short for an IDX header of {header}")
    zeros, code, axes = struct.unpack(">HBB", data[:4])
    if zeros or code != UNSIGNED_BYTE or axes != len(shape):
        raise DataError(
            f"{path}: magic number 0x{data[:4].hex()}, expected 0x{UNSIGNED_BYTE << 8 | len(shape):08x}"
            f" (IDX, unsigned bytes, {len(shape)} axes)"
        )
    found = struct.unpack(f">{axes}I", data[4:header])
    if any(want is not None and want != got for want, got in zip(shape, found, strict=True)):
        raise DataError(f"{path}: shape {list(found)}, expected {['any' if n is None else n for n in shape]}")
    size, expected = len(data) - header, math.prod(found)
    if size != expected:
        what = "cut short" if size < expected else "too long"
        raise DataError(f"{path}: {what}: {size} bytes of data for shape {list(found)}, expected {expected}")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(found)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or incomplete ({error}); download the file again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
