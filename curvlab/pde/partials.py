"""Names of partial derivatives, and the combinatorics of the product and chain rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

#: a partial derivative: its coordinates, sorted, each once for every derivative in it; ``()`` is the value
Partial = tuple[int, ...]

#: the highest order that is supported
HIGHEST = 4


@dataclass(frozen=True)
class Laplacian:
    """The sum of second derivatives over some coordinates, propagated as one channel."""

    coordinates: tuple[int, ...]


#: what can be asked for of a network
Derivative = Partial | Laplacian


def order(derivative: Derivative) -> int:
    """How often it differentiates."""
    return 2 if isinstance(derivative, Laplacian) else len(derivative)


def closed(wanted: Iterable[Derivative]) -> tuple[Derivative, ...]:
    """The channels that a Taylor-mode pass needs for these derivatives: all of which they are made.

    The value comes first, then the first derivatives, then the others by order.
    """
    found: set[Derivative] = {()}
    for each in wanted:
        if isinstance(each, Laplacian):
            found.add(each)
            found.update((k,) for k in each.coordinates)
        else:
            found.update(c for r in range(1, len(each) + 1) for c in combinations(each, r))
    return tuple(sorted(found, key=_place))


def _place(derivative: Derivative) -> tuple[int, int, Partial]:
    if isinstance(derivative, Laplacian):
        return 2, 1, derivative.coordinates
    return len(derivative), 0, derivative


@lru_cache(maxsize=1024)
def chain(partial: Partial) -> tuple[tuple[int, int, tuple[Partial, ...]], ...]:
    """Faà di Bruno's formula ``∂^α σ(z) = Σ coefficient · σ^(k)(z) · Π ∂^β z``, as (coefficient, k, β…).

    The term of ``σ'`` and ``∂^α z`` is left out.
    """
    terms: Counter[tuple[Partial, ...]] = Counter()
    for parts in _partitions(tuple(range(len(partial)))):
        if len(parts) > 1:
            terms[tuple(sorted(tuple(sorted(partial[p] for p in part)) for part in parts))] += 1
    return tuple((count, len(factors), factors) for factors, count in terms.items())


@lru_cache(maxsize=1024)
def product(partial: Partial) -> tuple[tuple[int, Partial, Partial], ...]:
    """Leibniz's rule: ``∂^α (a b) = Σ coefficient · ∂^β a · ∂^γ b``, as (coefficient, β, γ)."""
    terms: Counter[tuple[Partial, Partial]] = Counter()
    places = range(len(partial))
    for size in range(len(partial) + 1):
        for some in combinations(places, size):
            left = tuple(partial[p] for p in some)
            right = tuple(partial[p] for p in places if p not in some)
            terms[left, right] += 1
    return tuple((count, left, right) for (left, right), count in terms.items())


def _partitions(items: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """All ways to split items into sets."""
    if not items:
        yield []
        return
    first, *rest = items
    for parts in _partitions(tuple(rest)):
        yield [(first,), *parts]
        for k, part in enumerate(parts):
            yield [*parts[:k], (first, *part), *parts[k + 1 :]]
