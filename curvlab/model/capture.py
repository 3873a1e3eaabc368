"""Capture: every use of given parameters by a torch function, as it happens.

Module hooks record a layer's inputs and outputs.  They miss a weight that ``F.linear`` takes directly, a
weight that two layers share, and a parameter that scales or shifts an activation.  A ``Capture`` is a mode of
``torch.overrides``: it looks at the arguments of every torch function that its thread calls in its context.
``curvlab.model.reading`` recognizes linear maps, lookups, scales and shifts.

A mode turns off the fused inference of ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention``.  Leave
the context before the backward pass, or a checkpointed block that is computed again there is recorded twice.
A compiled function is compiled once more for calls under a capture, and nothing is recorded inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvlab.model.parameter_use import ParameterUse, Part, part_of
from curvlab.model.reading import READINGS, unread


class Capture(TorchFunctionMode):
    """Inside its context, calls ``on_use`` for every use of one of the parameters or of a view of one.

    ``on_use`` runs right after the function, before anything can change its output in place, and with this
    capture switched off.  A use is a call that returns a tensor with a gradient.  A call that returns only
    views of parameters is no use; what is done with the views is.  Nothing is recorded while gradients are
    off.  An exception of the function or of ``on_use`` is passed on.  Captures nest, and each records all
    uses of its own parameters.

    A call that concerns no parameter costs about 4 μs (one CPU thread), a use about 25 μs.
    """

    def __init__(self, parameters: Iterable[Tensor], on_use: Callable[[ParameterUse], None]) -> None:
        super().__init__()
        self._known = {id(p): p for p in parameters}
        self._on_use = on_use

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return output
        if getattr(func, "__name__", "") == "__get__":  # an attribute of a tensor: no tensor, or a view
            return output
        if self._concerns(args) or (kwargs and self._concerns(kwargs.values())):
            for use in self._uses(func, args, kwargs, output):
                self._on_use(use)
        return output

    def _concerns(self, arguments: Iterable[Any]) -> bool:
        """Whether a parameter or a view of one is among the arguments; most calls end here."""
        known = self._known
        for argument in arguments:
            if isinstance(argument, Tensor):
                if id(argument) in known or id(argument._base) in known:
                    return True
            elif isinstance(argument, tuple | list) and self._concerns(argument):
                return True
        return False

    def _part(self, argument: Any) -> Part | None:
        """The part of a parameter that an argument is."""
        if not isinstance(argument, Tensor):
            return None
        parameter = self._known.get(id(argument))
        if parameter is None:
            parameter = self._known.get(id(argument._base))
        if parameter is None or not argument.requires_grad:
            return None
        return part_of(argument, parameter)

    def _parts(self, arguments: Any) -> Iterator[Part]:
        """The parts of parameters among nested arguments."""
        if isinstance(arguments, Tensor):
            part = self._part(arguments)
            if part is not None:
                yield part
        elif isinstance(arguments, tuple | list):
            for argument in arguments:
                yield from self._parts(argument)
        elif isinstance(arguments, dict):
            for argument in arguments.values():
                yield from self._parts(argument)

    def _uses(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Iterator[ParameterUse]:
        made = self._made(output)
        if made is None:
            return
        name = getattr(func, "__name__", repr(func))
        reading = READINGS.get(func)
        if reading is not None:
            try:
                uses = reading(name, self._part, made, *args, **kwargs)
            except TypeError:  # an overload with other arguments
                reading = None
        if reading is None:
            uses = (unread(name, part, made) for part in self._parts((args, kwargs)))
        yield from uses

    def _made(self, output: Any) -> Tensor | None:
        """The first tensor of an output that has a gradient and is no view of a parameter."""
        if isinstance(output, Tensor):
            known = id(output) in self._known or id(output._base) in self._known
            return None if known or not output.requires_grad else output
        if isinstance(output, tuple | list):
            return next((made for made in map(self._made, output) if made is not None), None)
        return None
