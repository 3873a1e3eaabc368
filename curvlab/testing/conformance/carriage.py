"""How members are carried about: other dtypes and devices, files, and other processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from curvlab.engine.state import export, nbytes, restore
from curvlab.protocols.structure import Group, Structure
from curvlab.testing.asserts import assert_close, tolerance
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.family import FamilyChecks
from curvlab.testing.costs import operations
from curvlab.testing.files import through_distributed_checkpoint, through_torch_save
from curvlab.testing.members import LIKE, member, size, symmetric
from curvlab.testing.problems import normal
from curvlab.testing.ranks import all_reduced

WAYS = {
    "torch.save and torch.load(weights_only=True)": through_torch_save,
    "torch.distributed.checkpoint": through_distributed_checkpoint,
}


class CarriageChecks(FamilyChecks):
    """Precision, device, state, reduction."""

    @check()
    def check_float32(self) -> None:
        """Every operation keeps float32 and is right in it."""
        self._operations_in(torch.float32)

    @check()
    def check_bfloat16(self) -> None:
        """Every operation keeps bfloat16 and is right in it."""
        self._operations_in(torch.bfloat16)

    def _operations_in(self, dtype: torch.dtype) -> None:
        low, high = (dict(operations(self.part, 6, 4, torch.zeros(1, dtype=t))) for t in (dtype, LIKE.dtype))
        for name, operation in low.items():
            found, expected = operation(), high[name]()
            what = f"{type(self.part).__name__}: {name} in {dtype}"
            for t in tensors_of(found):
                assert t.dtype is dtype, f"{what} gives {t.dtype}"
            if isinstance(found, (Tensor, Structure)):
                a, b = (t.dense() if isinstance(t, Structure) else t for t in (found, expected))
                off, scale = float((a.double() - b.double()).abs().max()), 10 * size(b)
                allowed = tolerance(dtype, 4) * scale
                assert off <= allowed, f"{what} is off by {off:.3g}, allowed: {allowed:.3g}"

    @check()
    def check_device(self) -> None:
        """What is made like a tensor lies where that does, and operations stay there (here: meta)."""
        like, d = torch.zeros(1, device="meta", dtype=torch.float64), 6
        name = type(self.part).__name__
        made: dict[str, Any] = {w: getattr(self.part, w)(d, like=like) for w in ("zeros", "eye")}
        made["project"] = self.part.project(torch.zeros(d, d, device="meta", dtype=torch.float64))
        M, x = made["eye"], torch.zeros(d, 2, device="meta", dtype=torch.float64)
        made |= {"@": M @ x, "rmatmul": M.rmatmul(x.mT), "dense": M.dense(), "norm": M.norm()}
        if isinstance(self.part, Group):
            made["congruence"] = self.part.congruence(M, x.mT)
            made["product"] = self.part.product(M, made["zeros"])
            made["gramian"] = self.part.gramian(M) @ x
        for what, found in made.items():
            wrong = {str(t.device) for t in tensors_of(found)} - {"meta"}
            assert not wrong, f"{name}: {what} of tensors on meta returns tensors on {', '.join(wrong)}"

    @check()
    def check_state(self) -> None:
        """A member comes back from files as it was, dtype and every bit: torch's own and distributed ones."""
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            like = torch.zeros(1, dtype=dtype)
            M = member(self.part, 6, 0, like=like)
            tensors, plain = export({"block": M})
            stored, held = sum(t.nbytes for t in M.tensors().values()), nbytes({"block": M})
            assert held == stored, (
                f"a {type(M).__name__} stores {stored} bytes, and {held} of them are visible to a state"
            )
            for way, carried in WAYS.items():
                other = {"block": self.part.zeros(6, like=like)}
                restore(other, carried(tensors), plain)
                what = f"a {type(M).__name__} in {dtype} through {way}"
                assert torch.equal(other["block"].dense(), M.dense()), f"{what} differs from the original"
                assert {t.dtype for t in other["block"].tensors().values()} == {dtype}, f"{what}: dtype"

    @check(capability="linear")
    def check_reduction(self) -> None:
        """Tensors summed over two processes (gloo) are the tensors of the sum."""
        d, name = 7, type(self.part).__name__
        S = [symmetric(d, seed) for seed in range(2)]
        members = [self.part.project(A.mT) for A in S]
        expected = self.part.project(S[0] + S[1]).dense()
        for rank, tensors in enumerate(all_reduced([M.tensors() for M in members])):
            found = replace(members[rank], **tensors).dense()  # type: ignore[type-var]
            what = f"{name}: members summed over two processes, rank {rank}"
            assert_close(found, expected, dimension=d, scale=size(expected), what=what)
        M, N = (member(self.part, d, seed) for seed in (0, 50))
        summed = replace(M, **{n: t + N.tensors()[n] for n, t in M.tensors().items()})
        x = normal(d, 2, seed=1)
        assert_close(summed @ x, M @ x + N @ x, dimension=d, scale=size(x) * d, what=f"{name}: of a sum")


def tensors_of(found: Any) -> tuple[Tensor, ...]:
    """The tensors of what an operation returned."""
    if isinstance(found, Structure):
        return tuple(found.tensors().values())
    return (found,) if isinstance(found, Tensor) else ()
