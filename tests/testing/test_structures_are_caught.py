"""Every check of the structures' suite finds a family that breaks its law, and blames no other."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.protocols.structure import Family, Structure
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.conformance import StructureConformance
from tests.structures.members import Naive
from tests.testing.caught import Broken, assert_caught, assert_every_check_is_shown, breaking, broken
from tests.testing.sound import Sound, SoundGram, SoundMatrix
from tests.testing.unsound import Projecting, Remembering, Rooted, Unsaved, WithSpare, rooted

CALLS = itertools.count()


def of(check: str, also: tuple[str, ...] = (), why: str = "", **methods: Any) -> Broken:
    """A family in order, but for methods of its members."""
    return breaking(check, SoundGram, also, why, of=broken(SoundMatrix, **methods))


# members


def a_large_one_turned_round(self: SoundMatrix, x: Tensor) -> Tensor:
    return (self.matrix.mT if self.d >= 100 else self.matrix) @ x


def out_copied(self: SoundMatrix, x: Tensor, out: Tensor | None = None) -> Tensor:
    found = x @ self.matrix
    return found if out is None else out.copy_(found).clone()


def out_flattened(self: SoundMatrix, x: Tensor, out: Tensor | None = None) -> Tensor:
    found = x @ self.matrix
    if out is None:
        return found
    out.view(-1).copy_(found.reshape(-1))
    return out


def scaled_by_size(self: SoundMatrix, c: float | Tensor) -> Any:
    return Structure.scale_(self, abs(c) if isinstance(c, float) else c)


def shifted_by_two_at_most(self: SoundMatrix, c: float) -> Any:
    self.matrix.diagonal(dim1=-2, dim2=-1).add_(min(c, 2.0))
    return self


def trace(self: SoundMatrix) -> Tensor:
    found = SoundMatrix.mean_diagonal(self)
    return found if self.batch else found * self.d


def norm_without_a_root(self: SoundMatrix) -> Tensor:
    found = SoundMatrix.norm(self)
    return found if self.batch else found.square()


def frobenius(self: SoundMatrix) -> Tensor:
    return Structure.spectral_norm(self) if self.batch else 1.5 * self.norm()


def thrice_the_flops(self: SoundMatrix, columns: int) -> float:
    return (3.0 if self.d >= 64 else 1.0) * 2.0 * self.d**2 * columns


def made_with_spare(self: Sound, matrix: Tensor) -> Any:
    return WithSpare(matrix, self, matrix.new_zeros(*matrix.shape[:-2], 1))


def made_rooted(self: Sound, matrix: Tensor) -> Any:
    return Rooted(rooted(matrix), self)


def tiny_zeros(self: Sound, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> Any:
    return self.made(like.new_full((*batch, d, d), 1e-30))


def lower_half(self: Sound, S: Tensor) -> Any:
    """Of the same symmetric part as S, and not the smallest such."""
    return self.made(2 * S.tril() - S.diagonal(dim1=-2, dim2=-1).diag_embed())


MEMBERS = [
    Broken(
        "settings", broken(SoundGram, __eq__=lambda self, other: self is other, __hash__=object.__hash__)()
    ),
    of("obligations", flops=lambda self, columns: round(2 * self.d**2 * columns)),
    Broken("projection", broken(Projecting, project=lower_half)()),
    breaking("own_memory", SoundGram, project=lambda self, S: self.made(S)),
    breaking("scalars", SoundGram, scalars=lambda self, d: d * d + 1),
    breaking("independence", SoundGram, made=made_with_spare, scalars=lambda self, d: d * d + 1),
    breaking("zeros_and_eye", SoundGram, zeros=tiny_zeros),
    of("products", __matmul__=a_large_one_turned_round),
    of("out", rmatmul=out_copied),
    of("non_contiguous", rmatmul=out_flattened),
    of("vector_space", scale_=scaled_by_size),
    of("shift", shift_=shifted_by_two_at_most),
    of("mean_diagonal", mean_diagonal=trace),
    of("norm", norm=norm_without_a_root),
    of("spectral_norm", spectral_norm=frobenius),
    of("flops", flops=thrice_the_flops),
]

# Gram matrices


def average_of_too_little(
    self: SoundGram, M: Any, keep: float, X: Tensor, weight: float, backend: Any
) -> None:
    backend.gram_(M.dense(), min(keep, 0.9), X, weight)


def average_that_leans(self: SoundGram, M: Any, keep: float, X: Tensor, weight: float, backend: Any) -> None:
    backend.gram_(M.dense(), keep, X, weight)
    M.dense()[-1, 0] -= 1e-6


def inverse_blind_to_tensors(self: SoundGram, M: Any, shift: Any, backend: Any) -> Any:
    return SoundMatrix(backend.inverse(M.dense(), shift if isinstance(shift, float) else 1e-3), self)


def inverse_when_asked(self: SoundGram, M: Any, shift: Any, backend: Any) -> Any:
    class Later:
        def __matmul__(self, x: Tensor) -> Tensor:
            return backend.inverse(M.dense(), shift) @ x

        def rmatmul(self, x: Tensor, out: Tensor | None = None) -> Tensor:
            return torch.matmul(x, backend.inverse(M.dense(), shift), out=out)

    backend.inverse(M.dense(), shift)
    return Later()


def inverse_of_anything(self: SoundGram, M: Any, shift: Any, backend: Any) -> Any:
    return SoundMatrix(torch.linalg.inv(M.dense() + shift * torch.eye(M.d).double()), self)


def power_undamped(self: SoundGram, M: Any, p: float, shift: Any, backend: Any) -> Any:
    return SoundGram.power(self, M, p, 0.0, backend)


def vectors_in_rows(self: SoundGram, M: Any, backend: Any) -> Any:
    values, vectors = SoundGram.eigh(self, M, backend)
    assert vectors is not None
    return values, vectors.mT


GRAMS = [
    breaking("average", SoundGram, average_=average_of_too_little),
    breaking(
        "positive",
        SoundGram,
        ("average", "inverse", "eigh", "power"),
        "an average that is not symmetric is not the projection, nor is what is made of it",
        average_=average_that_leans,
    ),
    breaking("inverse", SoundGram, inverse=inverse_blind_to_tensors),
    breaking("inverse_stays", SoundGram, inverse=inverse_when_asked),
    breaking("not_positive_definite", SoundGram, inverse=inverse_of_anything),
    breaking("power", SoundGram, power=power_undamped),
    breaking("eigh", SoundGram, ("power",), "powers are made of the eigenvectors", eigh=vectors_in_rows),
]

# groups


def congruence_of_the_first_rows(self: Sound, K: Any, X: Tensor) -> Any:
    return Sound.congruence(self, K, X[..., :32, :])


def from_a_hundred_on(right: Any, wrong: Any) -> Any:
    """One way for small matrices, another for large ones."""
    return lambda self, K, *rest: (wrong if K.d >= 100 else right)(self, K, *rest)


def outer_square(self: Sound, K: Any) -> Any:
    return self.made(K.dense() @ K.dense().mT)


def product_turned_round(self: Sound, K: Any, M: Any) -> Any:
    return self.made(M.dense() @ K.dense())


def gramian_of_the_transpose(self: Sound, K: Any) -> Any:
    if K.d != 9:
        return Sound.gramian(self, K)
    return Sound.gramian(self, self.made(K.dense().mT.contiguous()))


GROUPS = [
    breaking("member", SoundGram, member=lambda self, A: self.made(A)),
    breaking("congruence", SoundGram, congruence=congruence_of_the_first_rows),
    breaking("square", SoundGram, square=from_a_hundred_on(Sound.square, outer_square)),
    breaking("product", SoundGram, product=from_a_hundred_on(Sound.product, product_turned_round)),
    breaking("gramian", SoundGram, gramian=gramian_of_the_transpose),
    breaking("inverse_free_updates", SoundGram, of=Remembering),
]

# stacks


def stacked_backwards(right: Any) -> Any:
    """Stacks of two axes come out in another order."""

    def method(self: Any, *arguments: Any) -> Any:
        found = right(self, *arguments)
        turn = found if isinstance(found, Tensor) else found.matrix
        return found if turn.dim() < 4 else type(found)(turn.flip(1).contiguous(), self)

    return method


def written_backwards(self: SoundMatrix, x: Tensor, out: Tensor | None = None) -> Tensor:
    found = x @ self.matrix
    if out is None:
        return found
    return out.copy_(found.flip(1) if found.dim() == 4 else found)


def one_mean_for_all(self: SoundMatrix) -> Tensor:
    return SoundMatrix.mean_diagonal(self).mean().expand(self.batch)


def one_coefficient_for_all(self: SoundMatrix, a: Any, other: Any, b: Any) -> Any:
    return Structure.combine_(self, a, other, b.mean() if isinstance(b, Tensor) else b)


def copied_part(self: SoundMatrix, k: int) -> Any:
    return type(self)(self.matrix[k].clone(), self.family)


STACKS = [
    breaking("stacked_members", SoundGram, project=stacked_backwards(Sound.project)),
    of("stacked_products", rmatmul=written_backwards),
    of("stacked_numbers", mean_diagonal=one_mean_for_all),
    of("stacked_coefficients", combine_=one_coefficient_for_all),
    breaking("stacked_group", SoundGram, product=stacked_backwards(Sound.product)),
    of("parts_are_views", part=copied_part),
]

# carriage


def lifted(dtype: torch.dtype) -> Any:
    def rmatmul(self: SoundMatrix, x: Tensor, out: Tensor | None = None) -> Tensor:
        found = x @ self.matrix
        if out is not None:
            return out.copy_(found)
        return found.double() if x.dtype is dtype else found

    return rmatmul


def zeros_on_the_cpu(self: Sound, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> Any:
    return self.made(torch.zeros(*batch, d, d, dtype=like.dtype))


CARRIAGE = [
    of("float32", rmatmul=lifted(torch.float32)),
    of("bfloat16", rmatmul=lifted(torch.bfloat16)),
    breaking("device", SoundGram, zeros=zeros_on_the_cpu),
    breaking("state", SoundGram, of=Unsaved),
    Broken(
        "reduction",
        broken(Sound, made=made_rooted)(),
        ("vector_space", "stacked_coefficients", "inverse_free_updates"),
        "tensors that add up wrongly over processes add up wrongly in one",
    ),
]

# manners


def drawing(self: SoundMatrix) -> Tensor:
    torch.rand(())
    return SoundMatrix.norm(self)


def restless(self: SoundMatrix) -> Tensor:
    return SoundMatrix.norm(self) * (1.0 + 3e-16 * (next(CALLS) % 2))


def switching(self: SoundMatrix) -> Tensor:
    torch.set_grad_enabled(False)
    return SoundMatrix.norm(self)


def reading(self: SoundMatrix) -> Tensor:
    found = SoundMatrix.mean_diagonal(self)
    return found if self.batch or float(found) == 0 else found.clone()


def overwriting(self: SoundGram, M: Any, backend: Any) -> Any:
    found = SoundGram.eigh(self, M, backend)
    M.matrix.mul_(2.0)
    return found


MANNERS = [
    of("random_state", norm=drawing),
    of("determinism", norm=restless),
    of("autograd", norm=switching),
    of("host", mean_diagonal=reading),
    breaking("arguments", SoundGram, eigh=overwriting),
]

CASES = [*MEMBERS, *GRAMS, *GROUPS, *STACKS, *CARRIAGE, *MANNERS]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_family_that_breaks_a_law_is_caught_by_that_check_alone(case: Broken) -> None:
    assert_caught("structure", case)


def test_every_check_is_shown_to_catch_something() -> None:
    assert_every_check_is_shown("structure", CASES, elsewhere=("dense_detours",))


@pytest.mark.parametrize("family", [Sound(), SoundGram(), Dense(), Diagonal()], ids=str)
def test_a_family_in_order_passes(family: Family) -> None:
    assert not StructureConformance.of(family).run().of("fail", "naive", "xfail")


def test_a_detour_that_warns_is_naive_by_the_names_of_the_methods_worth_writing() -> None:
    report = StructureConformance.of(Naive()).run()
    assert report.of("naive") == ("dense_detours",)
    assert not report.failed
    message = report["dense_detours"].message
    for method in ("Naive.zeros", "Naive.eye", "NaiveMatrix.rmatmul", "NaiveMatrix.norm", "Naive.congruence"):
        assert method in message


def test_a_detour_that_does_not_warn_is_naive_too() -> None:
    quiet = broken(Diagonal, product=lambda self, K, M: self.project(K.dense() @ M.dense()))
    report = StructureConformance.of(quiet()).run()
    assert report["dense_detours"].result == "naive"
    assert report["dense_detours"].message == "product makes a tensor as large as the dense matrix"
