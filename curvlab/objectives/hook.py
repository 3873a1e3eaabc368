"""Hooks of torch that do not keep their owner alive, and that copies of a model do not take along."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from curvlab.linalg.untraced import untraced


class Hook:
    """Calls a method of an object that it does not keep alive.

    A copy of the model, or one from a file, has a hook in its place that does nothing.
    """

    def __init__(self, method: Callable[..., Any] | None, *first: Any) -> None:
        self.method = None if method is None else weakref.WeakMethod(method)
        self.first = first

    @untraced
    def __call__(self, *given: Any) -> Any:
        method = None if self.method is None else self.method()
        return None if method is None else method(*self.first, *given)

    def __reduce__(self) -> tuple[type[Hook], tuple[None]]:
        return Hook, (None,)


def remove(handles: Iterable[Any]) -> None:
    """Remove the hooks that torch gave these handles for."""
    for handle in handles:
        handle.remove()
