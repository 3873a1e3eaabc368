"""All or nothing: what a step changes before its write is put back if the step fails.

A step works on states in place.  States whose step may fail are copied first (``Undo.keep``); the copies
live within the step.  The generator is always kept.  Plain values and replaced objects come back with
the tensors, which keep their identity and their memory.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import fields
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from curvlab.engine.state import held, kind_of


class Kept:
    """A state as it was: which objects it held, and copies of its tensors."""

    def __init__(self, state: Any) -> None:
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._records: list[tuple[Any, dict[str, Any]]] = []
        self._mappings: list[tuple[MutableMapping[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._take(state)

    @torch.no_grad()
    def put_back(self) -> None:
        """The state is as it was, bit for bit."""
        for record, values in self._records:
            for name, value in values.items():
                if getattr(record, name) is not value:
                    setattr(record, name, value)
        for mapping, found in self._mappings:
            mapping.clear()
            mapping.update(found)
        for items, values_in_order in self._lists:
            items[:] = values_in_order
        for tensor, copy in self._tensors:
            tensor.copy_(copy)

    def _take(self, state: Any) -> None:
        type_: Any = type(state)
        kind = kind_of(type_)
        if kind == "vector":
            state, kind = state.flat, "tensor"
        if kind == "tensor":
            self._tensors.append((state, state.detach().clone()))
        elif kind == "mapping":
            self._mappings.append((state, dict(state)))
            for value in state.values():
                self._take(value)
        elif kind == "sequence":
            if isinstance(state, list):
                self._lists.append((state, list(state)))
            for value in state:
                self._take(value)
        elif kind == "record":
            record: Any = type(state)
            names = _fields(record)
            self._records.append((state, {name: getattr(state, name) for name in names}))
            for name in held(record):
                self._take(getattr(state, name))


@cache
def _fields(record: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(record))


class Undo:
    """Within ``with``: an exception before ``settle`` puts the generator and what was kept back."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._random: Tensor | None = None
        self._kept: list[Kept] = []

    def __enter__(self) -> Undo:
        self._random = self._generator.get_state()
        return self

    def keep(self, *states: Any) -> None:
        """Copy states that are about to change."""
        self._kept += [Kept(state) for state in states]

    def settle(self) -> None:
        """Nothing can fail any more: parameters are written next."""
        self._random = None
        self._kept.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._random is not None:
            self._generator.set_state(self._random)
            for kept in reversed(self._kept):
                kept.put_back()
        self.settle()
