"""How a device computes, where torch leaves a choice: entered around a computation, and left as it was."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Arithmetic(Hashable, Protocol):
    """A choice of arithmetic.  Equal ones give equal numbers."""

    def on(self) -> AbstractContextManager[Any]:
        """Inside, the device computes so; afterwards as before."""


def under(*choices: Arithmetic | None) -> AbstractContextManager[Any]:
    """Inside, every choice is on, the last one innermost; ``None`` changes nothing."""
    made = [choice for choice in choices if choice is not None]
    return _under(made) if made else nullcontext()


@contextmanager
def _under(choices: Iterable[Arithmetic]) -> Iterator[None]:
    with ExitStack() as stack:
        for choice in choices:
            stack.enter_context(choice.on())
        yield
