"""Hooks that ``torch.compile`` runs instead of tracing them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch

Returned = TypeVar("Returned")


def untraced(function: Callable[..., Returned]) -> Callable[..., Returned]:
    """The function, at which a compiled graph breaks; traced, a hook would compile again and again.

    ``torch.compiler.disable`` alone does the same, and costs some microseconds in every call outside of
    compiled code: a step has dozens.
    """
    apart: Callable[..., Returned] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]

    @wraps(function)
    def call(*args: object) -> Returned:
        return apart(*args) if torch.compiler.is_compiling() else function(*args)

    return call
