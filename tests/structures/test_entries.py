"""Families of two methods: what follows from which entries are kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from curvlab.errors import PluginError
from curvlab.protocols.structure import NaiveFallback
from curvlab.structures.entries import EntryFamily, EntryMatrix
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance import StructureConformance
from curvlab.testing.members import member, symmetric


@dataclass(frozen=True)
class UpperMatrix(EntryMatrix):
    """An upper triangle, by rows."""

    entries: Tensor
    order: int

    def dense(self) -> Tensor:
        matrix = self.entries.new_zeros(*self.entries.shape[:-1], self.order, self.order)
        rows, columns = torch.triu_indices(self.order, self.order)
        matrix[..., rows, columns] = self.entries
        return matrix


@dataclass(frozen=True)
class Upper(EntryFamily):
    """Upper triangles."""

    def member(self, A: Tensor) -> UpperMatrix:
        d = A.shape[-1]
        rows, columns = torch.triu_indices(d, d)
        return UpperMatrix(self, A[..., rows, columns], d)


@dataclass(frozen=True)
class ConstantMatrix(EntryMatrix):
    """A multiple of the identity."""

    number: Tensor
    order: int

    def dense(self) -> Tensor:
        return self.number[..., None, None] * torch.eye(self.order).to(self.number)


@dataclass(frozen=True)
class Constant(EntryFamily):
    """Multiples of the identity: their one scalar is the first entry, and that is no projection."""

    def member(self, A: Tensor) -> ConstantMatrix:
        return ConstantMatrix(self, A[..., 0, 0].clone(), A.shape[-1])


@dataclass(frozen=True)
class Averaged(Constant):
    """The same with the projection that it owes."""

    def project(self, S: Tensor) -> ConstantMatrix:
        return ConstantMatrix(self, S.diagonal(dim1=-2, dim2=-1).mean(-1), S.shape[-1])


class TestTwoMethodsAreEnough(StructureConformance):
    def make(self) -> Upper:
        return Upper()


class TestAFamilyWhoseScalarsAreNoEntriesWritesTheThird(StructureConformance):
    def make(self) -> Averaged:
        return Averaged()


@pytest.fixture(autouse=True)
def dense_fallbacks_are_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaiveFallback)
        yield


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("d", [1, 2, 7])
def test_the_symmetric_part_of_the_projection_is_nearest(d: int, batch: tuple[int, ...]) -> None:
    S = symmetric(d, 0, *batch)
    Z = Upper().project(S).dense()
    assert_close(Z, torch.triu(S) + torch.triu(S, 1))
    rest = 0.5 * (Z + Z.mT) - S
    away = member(Upper(), d, 1, *batch).dense()
    assert_close((rest * (away + away.mT)).sum((-2, -1)), torch.zeros(batch).double(), scale=float(d * d))


def test_what_a_member_stores_is_counted_and_named() -> None:
    M = Upper().project(symmetric(5, 0))
    assert list(M.tensors()) == ["entries"]
    assert M.d == 5
    assert Upper().scalars(5) == 15 == M.tensors()["entries"].numel()


def test_a_dimension_that_is_read_off_the_dense_matrix_is_what_a_warning_names() -> None:
    """And no other operation is blamed for it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NaiveFallback)
        M = Upper().project(symmetric(5, 0))
        assert (M.d, M.batch) == (5, ())
    named = [str(w.message).split()[0] for w in caught]
    assert named == ["UpperMatrix.d", "UpperMatrix.batch"]
    quiet = {"d": property(lambda self: self.order), "batch": property(lambda self: self.entries.shape[:-1])}
    other = type("Quick", (UpperMatrix,), quiet)(Upper(), M.entries, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NaiveFallback)
        assert (other.d, other.batch) == (5, ())


def test_a_family_whose_scalars_are_no_entries_is_told_to_write_the_projection() -> None:
    with pytest.raises(
        PluginError, match=r"Constant: dense\(\) of member\(A\) must be A .*define Constant\.project"
    ):
        Constant().project(symmetric(3, 0))
