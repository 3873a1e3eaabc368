"""Structures: patterns of square matrices, most of them closed under products."""

from __future__ import annotations

from typing import Any

from curvlab import hookimpl

api_version = "1.0"

#: name, where the class is, what it is
FAMILIES = (
    ("auto", "auto:Auto", "dense up to a dimension, and another structure above it"),
    ("block-diagonal", "block_diagonal:BlockDiagonal", "blocks of one size on the diagonal"),
    (
        "hierarchical",
        "hierarchical:Hierarchical",
        "dense blocks at both ends, whose rows are dense, and a diagonal between",
    ),
    ("low-rank", "low_rank:LowRank", "a matrix of low rank plus a multiple of the identity"),
    ("lower-arrow", "arrow:LowerArrow", "lower triangular: k dense rows or columns, and a diagonal"),
    ("lower-toeplitz", "toeplitz:LowerToeplitz", "lower triangular, constant along each diagonal"),
    ("lower-triangular", "triangular:LowerTriangular", "the lower triangle"),
    ("upper-arrow", "arrow:UpperArrow", "upper triangular: k dense rows or columns, and a diagonal"),
    ("upper-toeplitz", "toeplitz:UpperToeplitz", "upper triangular, constant along each diagonal"),
    ("upper-triangular", "triangular:UpperTriangular", "the upper triangle"),
)


@hookimpl
def curvlab_register(registry: Any) -> None:
    """Parts by import string; nothing here imports torch."""
    for name, place, summary in FAMILIES:
        registry.add("structure", name, f"curvlab_structures.{place}", summary=summary)
