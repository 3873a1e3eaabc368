"""What torch cannot differentiate twice, found and named: criteria and models of Gauss-Newton products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault

#: what works where second derivatives do not exist
ALTERNATIVES = 'set labels = "data" if the method has that knob, or use a method that needs gradients only'

#: the node that ``once_differentiable`` leaves; it cuts the graph without an error
CUT = "Error"


@contextmanager
def differentiating_twice(what: str) -> Iterator[None]:
    """Inside, an error of torch's derivatives becomes a ``ConfigError`` about ``what``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise _once(what, str(error).partition("\n")[0]) from error


def require_twice(what: str, gradients: Iterable[Tensor]) -> None:
    """Raise ``ConfigError`` if these gradients, made with a graph, are cut off from what they depend on."""
    waiting = [g.grad_fn for g in gradients]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == CUT:
            raise _once(what, "it contains a function marked with once_differentiable")
        seen.add(node)
        waiting += [below for below, _ in node.next_functions]


def _once(what: str, why: str) -> ConfigError:
    return ConfigError(
        Fault(
            f"Gauss-Newton products need second derivatives of {what},"
            f" but torch cannot differentiate it twice: {why}",
            hint=ALTERNATIVES,
        )
    )
