"""What a model takes may be several tensors: tuples, lists and mappings of them, in one another."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from torch import Tensor


def each_tensor(change: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """``inputs`` with every tensor in tuples, lists and dictionaries changed; containers keep their types.

    Anything else in them stays as it is.
    """
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):  # a named tuple takes its fields one by one
        return type(inputs)(*(each_tensor(change, inner) for inner in inputs))
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(each_tensor(change, inner) for inner in inputs)
    if isinstance(inputs, dict):
        found = copy(inputs)  # of its type, be it ordered or with a default
        found.update({name: each_tensor(change, inner) for name, inner in inputs.items()})
        return found
    return inputs
