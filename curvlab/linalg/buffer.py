"""Flat buffers of blocks: the views that were made of one, and buffers kept for reuse."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

#: buffers kept for reuse: a gradient and an update
KEEP = 2


class Buffer:
    """A flat tensor ``[D]`` with the views of its blocks, each made once.

    ``parts`` holds other views of it, by what they are; vectors that share the buffer share them.
    """

    __slots__ = ("flat", "parts", "views")

    def __init__(self, flat: Float[Tensor, " D"]) -> None:
        self.flat = flat
        self.views: dict[str, Tensor] = {}
        self.parts: dict[Hashable, Mapping[str, Tensor]] = {}

    def view(self, name: str, shapes: Mapping[str, torch.Size], sizes: list[int]) -> Tensor:
        """The view of one of the blocks of these shapes and sizes, which lie in the buffer in this order."""
        found = self.views.get(name)
        if found is None:  # all of them in one call: a step has a few new vectors, and reads every block
            pieces = self.flat.split_with_sizes(sizes)
            for (block, shape), piece in zip(shapes.items(), pieces, strict=True):
                self.views[block] = piece if len(shape) == 1 else piece.view(shape)
            found = self.views[name]
        return found


class Recycled:
    """Up to ``KEEP`` buffers of one size that were handed back.

    What a solve needs again and again is then allocated once.
    """

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: list[Buffer] = []

    def take(self, like: Tensor) -> Buffer | None:
        """A buffer of ``like``'s dtype and device, which leaves the pool; ``None`` if there is none."""
        for k, free in enumerate(self._free):
            if free.flat.dtype == like.dtype and free.flat.device == like.device:
                return self._free.pop(k)
        if like.device.type == "cpu":
            _accustom()
        return None

    def put(self, buffer: Buffer) -> None:
        """Keep a buffer for reuse; one whose memory is here already, or one too many, is left alone."""
        known = {free.flat.data_ptr() for free in self._free}
        if buffer.flat.data_ptr() not in known and len(self._free) < KEEP:
            self._free.append(buffer)

    def clear(self) -> None:
        """Let go of all of them."""
        self._free.clear()


@cache
def _accustom() -> None:
    """Let the C library keep freed vectors, once in a process.

    Fresh memory costs page faults, which take longer than the arithmetic on it.  The C library
    returns freed memory to the system beyond a threshold, and raises that threshold to the largest piece that
    was freed, up to 32 MiB.  One is freed here, which is never touched.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")
