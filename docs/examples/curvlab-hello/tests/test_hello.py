"""The conformance suite, and one law of this structure alone."""

from __future__ import annotations

import torch

from curvlab.testing.conformance import StructureConformance
from curvlab_hello.hello import Hello


class TestHello(StructureConformance):
    def make(self) -> Hello:
        return Hello()


def test_even_and_odd_indices_never_meet() -> None:
    matrix = Hello().project(torch.ones(5, 5)).dense()
    assert matrix.tolist() == [[float((i + j) % 2 == 0) for j in range(5)] for i in range(5)]
