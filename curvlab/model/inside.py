"""Uses of parameters inside a module's call, where no hook on a layer sees them.

A composite reader's module is called as it is.  Its call is then computed again, or captured as it is made
where the reader has nothing to compute; each use of a parameter of one of its blocks becomes a ``Use``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from curvlab.linalg.untraced import untraced
from curvlab.model.capture import Capture
from curvlab.model.parameter_use import ParameterUse, Part
from curvlab.model.readers.bare import ScaleUse
from curvlab.model.rerun.replacement import Generators, replaced
from curvlab.model.use import Use
from curvlab.protocols.blocks import Block
from curvlab.protocols.pieces import index_of_piece, whole
from curvlab.protocols.reader import CompositeReader

#: uses that rows are made of
READ = ("linear", "scale", "shift")


class Inside:
    """Forward hooks of one composite module that tell ``record`` of the uses of its blocks' parameters.

    ``wanted()`` says at every call whether uses are recorded.  ``leave(block, reason)`` receives a block with
    a use that no reader reads.  Inside a compiled call nothing is captured; a re-run happens outside of it.
    """

    def __init__(
        self,
        name: str,
        blocks: Sequence[Block],
        record: Callable[[Use], None],
        wanted: Callable[[], bool | None],
        leave: Callable[[str, str], None],
    ) -> None:
        self.name, self.blocks, self.record, self.wanted = name, tuple(blocks), record, wanted
        self.leave = leave
        reader = self.blocks[0].reader
        assert isinstance(reader, CompositeReader), "other readers have hooks of their own"
        self.reader = reader
        self.under_way: list[Generators | Capture | None] = []  # for each call, the innermost last

    def attach(self, module: nn.Module, *, first: bool = False) -> list[RemovableHandle]:
        """The hooks' handles.  ``first``: before other hooks, one of which may free the parameters."""
        return [
            module.register_forward_pre_hook(self._begin, with_kwargs=True),
            module.register_forward_hook(self._end, with_kwargs=True, always_call=True, prepend=first),
        ]

    @untraced
    def _begin(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        found: Generators | Capture | None = None
        if self._listening():
            found = Generators.of(module) if self.reader.reruns else self._capture(module)
        if isinstance(found, Capture):
            found.__enter__()  # type: ignore[no-untyped-call]
        self.under_way.append(found)

    @untraced
    def _end(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
        if not self.under_way:
            return None
        found = self.under_way.pop()
        if isinstance(found, Capture):
            found.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            return None
        if len(rest) != 2:  # removed while other hooks ran: torch forgot that it takes kwargs
            return None
        kwargs, output = rest
        if not self.reader.reruns or output is None or not self._listening():
            return None  # no output: the call raised an exception
        with self._capture(module):
            return replaced(self.name, module, output, lambda: self.reader.rerun(module, args, kwargs), found)

    def _listening(self) -> bool:
        return torch.is_grad_enabled() and bool(self.wanted())

    def _capture(self, module: nn.Module) -> Capture:
        readers = [b.reader for b in self.blocks if b.reader is not None]
        names = sorted({whole(p) for reader in readers for p in reader.parameters(module)})
        return Capture(map(module.get_parameter, names), lambda use: self._tell(module, use))

    def _tell(self, module: nn.Module, use: ParameterUse) -> None:
        """Record a use for each block that holds its parameter."""
        held = [part for part in (use.part, use.bias) if part is not None]
        for block in self.blocks:
            reader = block.reader
            assert isinstance(reader, CompositeReader), "blocks of one composite module"
            names = reader.parameters(module)
            if not any(_is(module, names[0], part) for part in held):
                if use.kind not in READ and any(_within(module, n, use.part) for n in names):
                    self.leave(block.name, _why(use))
                continue
            if use.kind not in READ:
                self.leave(block.name, _why(use))
                continue
            if use.output.numel() == 0:
                continue
            x = use.output if use.x is None else use.x  # of a shift only the shape is read
            how = ScaleUse(reader) if use.kind == "scale" else reader
            self.record(Use(block, module, how, x.detach(), use.output, False))


def _within(module: nn.Module, name: str, part: Part) -> bool:
    """Whether a part belongs to the parameter of a name."""
    return part.parameter is module.get_parameter(whole(name))


def _why(use: ParameterUse) -> str:
    return use.reason or f"used by {use.function} as a {use.kind}"


def _is(module: nn.Module, name: str, part: Part) -> bool:
    """Whether a part of a parameter is what a name in a module means."""
    p, index = module.get_parameter(whole(name)), index_of_piece(name)
    wanted = (0, p.shape[0]) if index is None else (index[0].start, index[0].stop)
    return part.parameter is p and (part.start, part.stop) == wanted
