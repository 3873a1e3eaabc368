"""States ↔ named tensors and plain values.

A state is records, dictionaries and lists of tensors, block vectors and plain values.  Its leaves
get dotted paths; a block vector becomes one tensor per block, ``path@block``.  Restoring fills the
tensors of a freshly initialized state in place, so dtype, device and aliasing stay what they are.
Fields marked ``metadata={"transient": True}`` are caches and left out; those marked ``{"transient": "step"}``
get their default back when the step is over, so that nothing in them outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from operator import attrgetter
from typing import Any

from torch import Tensor

from curvlab.errors import CheckpointError
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.structure import Family

Plain = int | float | bool | str | None


@dataclass(frozen=True)
class Leaf:
    """One tensor, vector or plain value of a state, and how to replace a plain one."""

    path: str
    value: Tensor | BlockVector | Plain
    replace: Callable[[Plain], None] | None = None


def leaves(state: Any, path: str = "") -> Iterator[Leaf]:
    """Every leaf of a state, in a fixed order."""
    if isinstance(state, (Tensor, BlockVector)):
        yield Leaf(path, state)
        return
    for key, value, replace in _children(state, path):
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(value, (int, float, bool, str)) or value is None:
            yield Leaf(inner, value, replace)
        elif not isinstance(value, Family):
            yield from leaves(value, inner)


def _children(state: Any, path: str) -> Iterator[tuple[Any, Any, Callable[[Plain], None]]]:
    if state is None:
        return
    if is_dataclass(state):
        for f in fields(state):
            if not f.metadata.get("transient"):
                yield f.name, getattr(state, f.name), _setter(state, f.name)
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield key, value, _placer(state, key)
    elif isinstance(state, (list, tuple)):
        for k, value in enumerate(state):
            yield k, value, _placer(state, k)
    else:
        raise TypeError(f"state {path!r} holds a {type(state).__name__}: not a record, tensor or plain value")


def _setter(record: Any, name: str) -> Callable[[Plain], None]:
    return lambda value: setattr(record, name, value)


def _placer(container: Any, key: Any) -> Callable[[Plain], None]:
    return lambda value: container.__setitem__(key, value)


def tensors_of(state: Any) -> list[Tensor]:
    """Every tensor of a state, a vector's as one, in a fixed order; microseconds, for use in every step."""
    found: list[Tensor] = []
    _collect((state,), found)
    return found


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    for value in values:
        type_: Any = type(value)
        kind = kind_of(type_)
        if kind == "plain":
            continue
        if kind == "tensor":
            found.append(value)
        elif kind == "vector":
            found.append(value.flat)
        elif kind == "mapping":
            _collect(value.values(), found)
        else:
            _collect(value if kind == "sequence" else _read(type_)(value), found)


@cache
def _read(record: Any) -> Callable[[Any], tuple[Any, ...]]:
    """Reads the fields of a record that are no caches."""
    names = held(record)
    if len(names) > 1:
        return attrgetter(*names)
    return lambda state: tuple(getattr(state, name) for name in names)


@cache
def kind_of(type_: type) -> str:
    """What a value of this type is in a state: tensor, vector, plain, mapping, sequence or record."""
    kinds: tuple[tuple[str, Any], ...] = (
        ("tensor", Tensor),
        ("vector", BlockVector),
        ("plain", (int, float, str, Family, type(None))),
        ("mapping", Mapping),
        ("sequence", (list, tuple)),
    )
    return next((kind for kind, types in kinds if issubclass(type_, types)), "record")


@cache
def held(record: Any) -> tuple[str, ...]:
    """The fields of a record that are no caches."""
    return tuple(f.name for f in fields(record) if not f.metadata.get("transient"))


def forget(state: Any) -> None:
    """Give what lives within one step its default back."""
    _forget((state,))


def _forget(values: Iterable[Any]) -> None:
    for value in values:
        type_: Any = type(value)
        kind = kind_of(type_)
        if kind == "mapping":
            _forget(value.values())
        elif kind == "sequence":
            _forget(value)
        elif kind == "record":
            for f in _passing(type_):
                default = f.default if f.default_factory is MISSING else f.default_factory()
                setattr(value, f.name, default)
            _forget(_read(type_)(value))


@cache
def _passing(record: Any) -> tuple[Field[Any], ...]:
    """The fields of a record that live within one step."""
    return tuple(f for f in fields(record) if f.metadata.get("transient") == "step")


def export(state: Any) -> tuple[dict[str, Tensor], dict[str, Plain]]:
    """The tensors (live, not copied) and the plain values of a state, by path."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Plain] = {}
    for leaf in leaves(state):
        if isinstance(leaf.value, Tensor):
            tensors[leaf.path] = leaf.value
        elif isinstance(leaf.value, BlockVector):
            tensors.update({f"{leaf.path}@{name}": block for name, block in leaf.value.items()})
        else:
            plain[leaf.path] = leaf.value
    return tensors, plain


def restore(state: Any, tensors: Mapping[str, Tensor], plain: Mapping[str, Plain]) -> None:
    """Fill ``state`` with what ``export`` gave; raises ``CheckpointError`` if the two do not match."""
    mine, own_plain = export(state)
    _same_keys(set(mine), set(tensors))
    _same_keys(set(own_plain), set(plain))
    for path, tensor in mine.items():
        other = tensors[path]
        if other.shape != tensor.shape:
            raise CheckpointError(
                f"state {path!r}: expected shape {tuple(tensor.shape)}, got {tuple(other.shape)}"
            )
    for path, value in own_plain.items():
        if not _fits(value, plain[path]):
            raise CheckpointError(f"state {path!r}: expected something like {value!r}, got {plain[path]!r}")
    for path, tensor in mine.items():  # only now: a state that does not fit must leave this one as it is
        tensor.copy_(tensors[path])
    for leaf in leaves(state):
        if leaf.replace is not None and leaf.value != plain.get(leaf.path, leaf.value):
            leaf.replace(plain[leaf.path])


def _fits(mine: Plain, theirs: Any) -> bool:
    """Whether a plain value may take the place of another: a number of a number's, a text of a text's."""
    if mine is None or theirs is None:
        return theirs is None or isinstance(theirs, (int, float, str))
    return isinstance(theirs, str if isinstance(mine, str) else (int, float))


def _same_keys(mine: set[str], theirs: set[str]) -> None:
    if mine != theirs:
        missing, extra = sorted(mine - theirs)[:3], sorted(theirs - mine)[:3]
        raise CheckpointError(
            f"the state belongs to another method or model: missing {missing or 'nothing'}, "
            f"unexpected {extra or 'nothing'}"
        )


def nbytes(state: Any) -> int:
    """Bytes of all tensors of a state, each buffer once."""
    total = 0
    for leaf in leaves(state):
        if isinstance(leaf.value, Tensor):
            total += leaf.value.nbytes
        elif isinstance(leaf.value, BlockVector):
            total += leaf.value.flat.nbytes
    return total
