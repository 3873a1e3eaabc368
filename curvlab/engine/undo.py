"""All or nothing: what a step changes before its write is put back if the step fails.

A step works on states in place.  States whose step may fail are copied first (``Undo.keep``); the copies
live within the step.  The generator is always kept.  Plain values and replaced objects come back with
the tensors, which keep their identity and their memory.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import fields, is_dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.structure import Family


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
        for held, values_in_order in self._lists:
            held[:] = values_in_order
        for tensor, copy in self._tensors:
            tensor.copy_(copy)

    def _take(self, state: Any) -> None:
        if isinstance(state, BlockVector):
            state = state.flat
        if isinstance(state, Tensor):
            self._tensors.append((state, state.detach().clone()))
        elif isinstance(state, (int, float, bool, str, Family)) or state is None:
            return
        elif isinstance(state, MutableMapping):
            self._mappings.append((state, dict(state)))
            for value in state.values():
                self._take(value)
        elif isinstance(state, (list, tuple)):
            if isinstance(state, list):
                self._lists.append((state, list(state)))
            for value in state:
                self._take(value)
        elif is_dataclass(state):
            self._records.append((state, {f.name: getattr(state, f.name) for f in fields(state)}))
            for f in fields(state):
                if not f.metadata.get("transient"):
                    self._take(getattr(state, f.name))


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
