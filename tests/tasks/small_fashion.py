"""Fashion-MNIST where it is not installed: four small files in its format."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def write_fashion(folder: Path) -> None:
    """Images that are bright on the left or on the right, and which."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 96), ("t10k", 32)):
        labels = rng.integers(0, 2, n, dtype=np.uint8)
        pixels = rng.integers(0, 40, (n, 28, 28), dtype=np.uint8)
        for k, label in enumerate(labels):
            pixels[k, :, 14 * label : 14 * label + 14] += 200
        images = struct.pack(">HBBIII", 0, 8, 3, n, 28, 28) + pixels.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, n) + labels.tobytes()
        )
