"""One of two processes that add up structured matrices over gloo: ``python two_ranks.py RANK STORE OUT``.

Rank r holds every member r + 1 times over, so that the sum is three times the member of rank 0.
"""

from __future__ import annotations

import sys
import warnings

import torch
import torch.distributed as dist
from singd.structures.hierarchical import Hierarchical15_15Matrix

from curvlab.protocols.structure import Group, NaiveFallback
from tests.limits.registered import families

D = 40


def symmetric() -> torch.Tensor:
    """A symmetric matrix."""
    A = torch.randn(D, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return A + A.mT


def main(rank: int, store: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    warnings.simplefilter("ignore", NaiveFallback)
    S = symmetric()
    theirs = Hierarchical15_15Matrix.from_dense((rank + 1) * S)
    theirs.all_reduce(op=dist.ReduceOp.SUM)
    found = {"theirs": theirs.to_dense()}
    for family in families():
        if isinstance(family, Group):
            member = family.project(((rank + 1) * S).mT)  # not contiguous either
            for tensor in member.tensors().values():
                dist.all_reduce(tensor)
            found[repr(family)] = member.dense()
    torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
