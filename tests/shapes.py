"""Checks the shapes in annotations while tests run: ``Float[Tensor, "n i"]`` is a claim that can be wrong.

Functions, methods and records whose annotations hold arrays are wrapped as soon as their module is
imported; everything else runs as it is, and its types are mypy's business.

Whether a call keeps its claims depends on shapes and dtypes alone.  Each combination of these is checked once
for a function: checks of every call take a fifth of the time of many tests.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

#: the rooms that compute
ROOMS = ("linalg", "model", "objectives", "parts", "precision", "structures", "tasks")
CHECKED = (*(f"curvlab.{room}" for room in ROOMS), "curvlab_firstorder", "curvlab_kfac", "curvlab_structures")

Function = Callable[..., Any]


def check_shapes() -> None:
    """From now on, modules of ``CHECKED`` are imported with their shapes checked."""
    sys.meta_path.insert(0, _Finder())


def checked(function: Function) -> Function:
    """``function`` with its array annotations checked for every combination of shapes and dtypes.

    Itself if it has none.
    """
    scope = getattr(function, "__globals__", {})
    hints = {name: _resolved(hint, scope) for name, hint in function.__annotations__.items()}
    arrays = {name: hint for name, hint in hints.items() if _is_of_arrays(hint)}
    if not any(hint is not type(None) for hint in arrays.values()):
        return function
    function.__annotations__ = arrays
    parameters = inspect.signature(function).parameters
    places = [(k, name) for k, name in enumerate(parameters) if name in arrays]
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(parameters[name].kind in loose for _, name in places):
        whole: Function = jaxtyped(typechecker=beartype)(function)
        return whole
    return _remembered(function, places)


def _remembered(function: Function, places: Sequence[tuple[int, str]]) -> Function:
    """Checks arguments and result of what was not seen yet: by forms of the arguments, forms of results."""
    seen: dict[tuple[Any, ...], set[Any]] = {}
    whole = jaxtyped(typechecker=beartype)(function)
    results: list[Any] = []

    @functools.wraps(function)  # its signature is what is checked
    def repeated(*arguments: Any, **named: Any) -> Any:
        return results.pop()

    again = jaxtyped(typechecker=beartype)(repeated)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        given = tuple(
            form(arguments[k] if k < len(arguments) else named.get(name, inspect.Parameter.empty))
            for k, name in places
        )
        known = seen.get(given)
        if known is None:
            result = whole(*arguments, **named)
            seen[given] = {form(result)}
            return result
        result = function(*arguments, **named)
        made = form(result)
        if made not in known:
            results.append(result)
            again(*arguments, **named)
            known.add(made)
        return result

    return wrapped


def form(value: Any) -> Any:
    """All of a value that a claim about arrays can depend on."""
    if isinstance(value, Tensor):
        return type(value), value.shape, value.dtype
    if isinstance(value, (tuple, list)):
        return type(value), *map(form, value)
    return type(value)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(CHECKED):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        _check_members(module, module.__name__)
        for thing in list(vars(module).values()):
            if inspect.isclass(thing) and thing.__module__ == module.__name__:
                _check_members(thing, module.__name__)


def _check_members(owner: Any, module: str) -> None:
    for name, thing in list(vars(owner).items()):
        if inspect.isfunction(thing) and thing.__module__ == module and thing.__annotations__:
            better = checked(thing)
            if better is not thing:
                setattr(owner, name, better)


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
    return hint in (None, type(None)) or (isinstance(hint, type) and issubclass(hint, AbstractArray))
