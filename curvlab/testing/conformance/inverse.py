"""The suite of inverses: from a curvature estimate to an operator close to ``(C + λI)⁻¹``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from curvlab.engine.state import export
from curvlab.errors import NotPositiveDefinite, UnsupportedEvidence
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker, KroneckerEigen
from curvlab.linalg.operator import BlockOperator, LinearOperator, dense
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.preconditioner import Inverse
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close, assert_self_adjoint
from curvlab.testing.conformance.bench import context
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.exercised import Exercised, Found
from curvlab.testing.problems import normal

#: two blocks, one of them with a side of dimension 1
SHAPES = {"a": (3, 4), "b": (1, 5)}

Curvature = LinearOperator[BlockVector]


class InverseConformance(Exercised):
    """An inverse against the dense one, for block-diagonal Kronecker curvature ``B ⊗ A``.

    A rule that refuses dense factors (``UnsupportedEvidence``) is checked with diagonal blocks.  For one
    that reads curvature of another kind, write ``curvature`` too.
    """

    kind = "inverse"
    part: Inverse

    def curvature(
        self, *, one_sided: bool = False, of: float = 1.0, dtype: torch.dtype = torch.float64
    ) -> Any:
        """Well-conditioned SPD blocks times ``of``; with ``one_sided`` the left factors are the identity."""
        blocks: dict[str, BlockOperator] = {}
        for k, (name, (o, i)) in enumerate(SHAPES.items()):
            if self.diagonal:
                blocks[name] = KroneckerEigen(
                    None, None, of * (0.5 + normal(o, i, seed=k).square()).to(dtype)
                )
                continue
            B = None if one_sided else Dense().project(_spd(o, 10 + k).to(dtype))
            blocks[name] = Kronecker(B, Dense().project(of * _spd(i, 20 + k).to(dtype)))
        return BlockDiagonal(blocks)

    @cached_property
    def diagonal(self) -> bool:
        """Whether the rule reads diagonal blocks, and none with dense factors."""
        A = Dense().project(_spd(4, 20))
        try:
            self.part.init(BlockDiagonal({"a": Kronecker(None, A)}))
        except UnsupportedEvidence:
            return True
        return False

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def vector(self, seed: int, dtype: torch.dtype = torch.float64) -> BlockVector:
        """A vector on the blocks."""
        layout = BlockLayout(SHAPES)
        return BlockVector(layout, normal(layout.size, seed=seed).to(dtype))

    def exercise(self) -> Found:
        C, v = self.curvature(), self.vector(0)
        return {"at the start": self.part.init(C) @ v, "inverted": self.part(C, context(0)) @ v}

    @check()
    def check_obligations(self) -> None:
        """``init`` and the call give operators with the same tensors by name, so that they can be saved."""
        C = self.curvature()
        first, then = self.part.init(C), self.part(C, context(0))
        for what, found in (("init(C)", first), ("its call", then)):
            assert isinstance(found, LinearOperator), (
                f"{self.name}: {what} must return a LinearOperator, not {found!r}"
            )
            image = found @ self.vector(0)
            assert image.layout == self.vector(0).layout, f"{self.name}: {what} maps to different blocks"
        a, b = ({n: tuple(t.shape) for n, t in export(x)[0].items()} for x in (first, then))
        assert a == b, (
            f"{self.name}: init(C) has the tensors {a}, and the call has {b}; the records must be the same"
        )

    @check()
    def check_undamped(self) -> None:
        """As λ vanishes it is C⁻¹."""
        C = self.curvature()
        found = dense(self.part(C, context(0, damping=1e-14)), self.vector(0))
        matrix = dense(C, self.vector(0))
        condition = 100 * float(torch.linalg.cond(matrix))
        what = f"{self.name} at λ = 1e-14, against C⁻¹"
        assert_close(found, torch.linalg.inv(matrix), condition=condition * 1e4, what=what)

    @check()
    def check_one_sided(self) -> None:
        """Where one factor is the identity, damping is exact: ``(C + λI)⁻¹``."""
        C = self.curvature(one_sided=True)
        for damping in (0.1, 10.0):
            found = dense(self.part(C, context(0, damping)), self.vector(0))
            matrix = dense(C, self.vector(0))
            expected = torch.linalg.inv(matrix + damping * torch.eye(len(matrix)).double())
            what = f"{self.name} of I ⊗ A at λ = {damping}, against (C + λI)⁻¹"
            assert_close(found, expected, condition=100.0, what=what)

    @check()
    def check_positive(self) -> None:
        """It is symmetric and positive definite, and the more damping, the shorter its images."""
        C, v = self.curvature(), self.vector(1)
        lengths = []
        for damping in (0.01, 0.1, 1.0, 100.0):
            inverse = self.part(C, context(0, damping))
            assert_self_adjoint(inverse, self.vector(0), psd=True)
            lengths.append(float((inverse @ v).norm()))
            assert float(v.dot(inverse @ v)) > 0, f"{self.name} at λ = {damping}: ⟨v, X v⟩ is not positive"
        assert lengths == sorted(lengths, reverse=True), f"{self.name}: longer with more damping: {lengths}"

    @check()
    def check_not_positive_definite(self) -> None:
        """What is negative, or not finite, raises ``NotPositiveDefinite`` and names the block."""
        for words, of in (("negative", -1.0), ("NaN", float("nan"))):
            C = self.curvature(of=of)
            said = self._refusal(C)
            if said is None and words == "negative" and self._clamps(C):
                continue
            assert said is not None, f"{self.name} of a {words} C does not raise NotPositiveDefinite"
            named = any(f'"{name}"' in said for name in SHAPES)
            assert named, f"{self.name} of a {words} C: the error names no block: {said}"

    def _refusal(self, C: Curvature) -> str | None:
        try:
            self.part(C, context(0))
        except NotPositiveDefinite as error:
            return str(error)
        return None

    def _clamps(self, C: Curvature) -> bool:
        """Whether a negative C is read as PSD, its eigenvalues raised to zero: a rule may do that."""
        inverse = self.part(C, context(0))
        return all(float(v.dot(inverse @ v)) > 0 for v in (self.vector(k) for k in range(3)))

    @check()
    def check_arguments(self) -> None:
        """C is not changed, and the inverse does not change with it afterwards."""
        C, v = self.curvature(), self.vector(0)
        before = dense(C, v)
        made = {"init(C)": self.part.init(C), "the inverse": self.part(C, context(0))}
        assert torch.equal(dense(C, v), before), f"{self.name} changes its argument, the curvature"
        images = {what: (operator @ v).clone() for what, operator in made.items()}
        for t in export(C)[0].values():
            t.mul_(3.0)
        for what, operator in made.items():
            same = torch.equal((operator @ v).flat, images[what].flat)
            assert same, f"{self.name}: {what} shares memory with C; clone it"

    @check()
    def check_float32(self) -> None:
        """In float32 the inverse's tensors and images are float32."""
        C, v = self.curvature(dtype=torch.float32), self.vector(0, torch.float32)
        for what, found in (("init(C)", self.part.init(C)), ("the inverse", self.part(C, context(0)))):
            dtypes = {str(t.dtype) for t in export(found)[0].values()} | {str((found @ v).dtype)}
            assert dtypes == {"torch.float32"}, f"{self.name}: {what} of float32 has {sorted(dtypes)}"


def _spd(d: int, seed: int) -> Tensor:
    X = normal(2 * d, d, seed=seed)
    return X.mT @ X / (2 * d) + 0.5 * torch.eye(d).double()
