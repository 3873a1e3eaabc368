"""What operations on members leave alone, and what they do not wait for."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvlab.protocols.structure import Gram, Group, NaiveFallback
from curvlab.testing.conformance.carriage import tensors_of
from curvlab.testing.conformance.check import Naive, check
from curvlab.testing.conformance.family import FamilyChecks
from curvlab.testing.costs import Operation, gram_operations, operations
from curvlab.testing.dispatch import host_reads, largest, waiting
from curvlab.testing.members import gram, member, symmetric
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack
from curvlab.testing.surroundings import Surroundings

#: no power of two, so that tiles are padded, and one at which most patterns store far fewer than d² numbers
D = 257


class MannersChecks(FamilyChecks):
    """Randomness, autograd, arguments, the host, and dense matrices."""

    def _operations(self) -> Iterator[tuple[str, Operation]]:
        S = symmetric(6, 0)
        yield "project", lambda: self.part.project(S)
        yield from operations(self.part, 6, 4)
        yield from gram_operations(self.part, 6, 4)

    @check()
    def check_random_state(self) -> None:
        """Nothing draws from a global generator of random numbers."""
        before = Surroundings.now()
        for name, operation in self._operations():
            operation()
            changed = before.random_changes()
            assert not changed, f"{type(self.part).__name__}: {name} draws from {', '.join(changed)}"

    @check()
    def check_determinism(self) -> None:
        """The same arguments give the same bits, whatever the global seeds."""
        found: list[dict[str, list[Tensor]]] = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            random.seed(seed)
            made = {name: operation() for name, operation in self._operations()}
            found.append({name: [t.clone() for t in tensors_of(value)] for name, value in made.items()})
        for name, first in found[0].items():
            same = all(torch.equal(a, b) for a, b in zip(first, found[1][name], strict=True))
            assert same, f"{type(self.part).__name__}: {name} gives different numbers in two equal calls"

    @check()
    def check_autograd(self) -> None:
        """Nothing switches autograd, nor makes an argument require a gradient."""
        before = Surroundings.now()
        for name, operation in self._operations():
            found = operation()
            what = f"{type(self.part).__name__}: {name}"
            changed = before.mode_changes()
            assert not changed, f"{what} changes {', '.join(changed)}"
            wrong = [t for t in tensors_of(found) if t.requires_grad]
            assert not wrong, f"{what} returns a tensor that requires a gradient, from arguments that do not"

    @check()
    def check_host(self) -> None:
        """No operation waits for the device, but for inverses, which raise, and factorizations."""
        every = (*operations(self.part, 6, 4), *gram_operations(self.part, 6, 4, Patient()))
        for name, operation in every:
            if name == "inverse":
                continue
            reads = host_reads(operation)
            what = f"{type(self.part).__name__}: {name}"
            assert not reads, f"{what} waits for the device in {', '.join(reads)}"

    @check()
    def check_arguments(self) -> None:
        """No operation changes its arguments but for the member that it is to change."""
        d, family = 6, self.part
        S, X = symmetric(d, 0), normal(4, d, seed=1)
        M, N = member(family, d, 0), member(family, d, 1)
        calls: dict[str, Any] = {
            "project": (lambda: family.project(S), S),
            "@": (lambda: M @ X.mT, X, M),
            "rmatmul": (lambda: M.rmatmul(X), X, M),
            "mean_diagonal": (M.mean_diagonal, M),
            "norm": (M.norm, M),
            "spectral_norm": (M.spectral_norm, M),
        }
        if isinstance(family, Group):
            A = M.dense().clone()
            calls["member"] = (lambda: family.member(A), A)
            calls["congruence"] = (lambda: family.congruence(M, X), M, X)
            calls["square"] = (lambda: family.square(M), M)
            calls["product"] = (lambda: family.product(M, N), M, N)
            calls["gramian"] = (lambda: family.gramian(M).rmatmul(X), M, X)
        if isinstance(family, Gram):
            P, Q = gram(family, d, 0), gram(family, d, 0)
            calls["average_"] = (lambda: family.average_(Q, 0.5, X, 1.0, Lapack()), X)
            calls["inverse"] = (lambda: family.inverse(P, 0.5, Lapack()), P)
            calls["eigh"] = (lambda: family.eigh(P, Lapack()), P)
        for name, (call, *arguments) in calls.items():
            kept = [_copies(a) for a in arguments]
            call()
            same = all(
                torch.equal(a, b)
                for x, y in zip(arguments, kept, strict=True)
                for a, b in zip(_held(x), y, strict=True)
            )
            assert same, f"{type(family).__name__}: {name} changes its arguments"

    @check()
    def check_dense_detours(self) -> None:
        """No operation goes through a dense matrix where the pattern stores far less: else it is naive."""
        found: dict[str, None] = {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", NaiveFallback)
            for _, operation in self._operations():
                operation()
            self.part.zeros(6, like=torch.zeros(1), batch=(2,))
            self.part.eye(6, like=torch.zeros(1), batch=(2,))
        for warning in caught:
            if issubclass(warning.category, NaiveFallback):
                found[str(warning.message).partition(" ")[0]] = None
        silent = [] if found else self._silent_detours()
        if found or silent:
            words = [f"define {', '.join(found)} without a dense matrix"] if found else []
            words += [f"{', '.join(silent)} makes a tensor as large as the dense matrix"] if silent else []
            raise Naive("; ".join(words))

    def _silent_detours(self) -> list[str]:
        """Operations that allocate a dense matrix and do not say so, where few numbers are stored."""
        if self.part.scalars(D) >= D * D / 4:
            return []
        every = (*operations(self.part, D, 4), *gram_operations(self.part, D, 4))
        return [name for name, operation in every if largest(operation) >= D * D]


@dataclass(frozen=True)
class Patient(Lapack):
    """The reference, which may wait for a factorization."""

    def cholesky(self, A: Tensor) -> Tensor:
        with waiting():
            return Lapack().cholesky(A)

    def inverse(self, A: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        with waiting():
            return Lapack().inverse(A, shift)

    def eigh(self, A: Tensor) -> tuple[Tensor, Tensor]:
        with waiting():
            return Lapack().eigh(A)


def _held(argument: Any) -> tuple[Tensor, ...]:
    return tensors_of(argument)


def _copies(argument: Any) -> tuple[Tensor, ...]:
    return tuple(t.clone() for t in _held(argument))
