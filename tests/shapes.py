"""Checks the shapes in annotations while tests run: ``Float[Tensor, "n i"]`` is a claim that can be wrong.

Only annotations of arrays are checked.  Other types are mypy's business, and not all of them can be
checked at run time.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

#: the rooms that compute
CHECKED = (
    *(
        f"curvlab.{room}"
        for room in ("linalg", "model", "objective", "parts", "precision", "structures", "tasks")
    ),
    "curvlab_firstorder",
    "curvlab_kfac",
)

F = TypeVar("F", bound=Callable[..., Any])


def arrays_only(function: F) -> F:
    """``function``, its array annotations checked on every call."""
    scope = getattr(function, "__globals__", {})
    hints = {name: _resolved(hint, scope) for name, hint in function.__annotations__.items()}
    function.__annotations__ = {name: hint for name, hint in hints.items() if _is_of_arrays(hint)}
    return beartype(function)


def check_shapes() -> None:
    """From now on, modules of ``CHECKED`` are imported with their shapes checked."""
    install_import_hook(list(CHECKED), "tests.shapes.arrays_only")


def _resolved(hint: Any, scope: dict[str, Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, scope)
    except NameError:  # imported for type checkers only, so no array
        return Any


def _is_of_arrays(hint: Any) -> bool:
    """An array, or a union or tuple of nothing but arrays and ``None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        return all(_is_of_arrays(inner) for inner in typing.get_args(hint))
    return hint is type(None) or (isinstance(hint, type) and issubclass(hint, AbstractArray))
