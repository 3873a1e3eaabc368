"""Which calls of which layers the present gradients of a plain loop are made of.

A layer's rows count when autograd has *accumulated* into the gradient of its weight, and as long as that
gradient exists.  The order of events in one backward pass of autograd (a *graph task*) is: gradients arrive
at the outputs of layers, the gradient of a parameter is complete, it is added to ``.grad``.  So

* rows that arrive are only pending: ``torch.autograd.grad`` for other purposes leaves nothing behind;
* rows are entered when their weight's gradient is added to ``.grad``;
* rows are dropped when that ``.grad`` has been cleared, by whatever means, before the next is added.

The same pass checks that the calls explain what is added.  The first step that reads rows, then one in ten,
compares both along a random direction; the others compare the weights of one output, another each time.

Calls of the model whose gradients flow in one backward pass belong to one loss, whose examples they share.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.work import autocast_rounding, without_autocast
from curvlab.model.taps import arrival, listen
from curvlab.model.use import Use
from curvlab.objectives.accumulated import Accumulated
from curvlab.objectives.comparison import Comparison, contradicted, is_zero
from curvlab.objectives.entry import Entry
from curvlab.objectives.examples import Declared, Forward
from curvlab.objectives.graph_task import GraphTasks, Pass
from curvlab.objectives.hook import Hook, remove
from curvlab.objectives.model_calls import ModelCalls
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.pieces import whole

#: most backward passes that one step accumulates; more without a step raise an error, so memory is bounded
MOST_PASSES = 1024
#: steps between two comparisons along a direction
FULL = 8
#: what layers belong to while examples are not counted
NOWHERE = Forward(None)


class Ledger:
    """Keeps, for the parameters of ``blocks``, what their ``.grad`` is made of.

    ``rows``: whether layer rows are kept; ``counts``: whether examples are; ``watch``: whether layers without
    rows are checked all the same, since some steps read them.  Hooks are removed when the
    ledger is no longer referenced.  Holds the rows of what was accumulated since the gradients were
    cleared; at most ``MOST_PASSES`` backward passes of them.
    """

    def __init__(self, blocks: Blocks, declared: Declared, *, tokens: bool = False) -> None:
        self.blocks = blocks
        self.rows = self.counts = self.watch = False
        self.active = True
        self.tasks = GraphTasks()
        self.calls = ModelCalls(declared, self.tasks, tokens=tokens)
        self.comparison = Comparison(blocks)
        self.obstacles: set[str] = set()
        self.full = self.looked = False  # whether gradients are compared along a direction, and ever were
        self.looks = 0  # steps since
        self.weights: dict[str, list[Block]] = defaultdict(list)  # by the first parameter of each layer block
        self.owners: dict[str, list[Block]] = defaultdict(list)
        self.accumulated = Accumulated(self.weights)
        self._hooked: set[str] = set()
        self._handles: list[Any] = []
        weakref.finalize(self, remove, self._handles).atexit = False
        self._keep(blocks.model.register_forward_pre_hook(Hook(self._begin), with_kwargs=True))
        self._keep(blocks.model.register_forward_hook(Hook(self._end)))
        self._tapped: set[str] = set()
        self.new: set[str] = set()  # layer blocks whose gradient may be older than their hooks
        self.cover(blocks)
        self.new.clear()

    def cover(self, blocks: Blocks) -> None:
        """Take on more blocks of the same model; layers and parameters known already are left alone."""
        self.blocks = self.comparison.blocks = blocks
        fresh = [b for b in blocks.members if b.is_layer and b.name not in self._tapped]
        for block in fresh:
            self._tapped.add(block.name)
            self.new.add(block.name)
            self.weights[whole(block.parameters[0])].append(block)
            for p in block.parameters:
                self.owners[whole(p)].append(block)
        self._handles.extend(
            listen(blocks, fresh, Hook(self._tap), Hook(self._looking_inside), Hook(self._leave))
        )
        if self._hooked:
            self._attach()

    def keep(self, *, rows: bool, counts: bool) -> None:
        """What to keep of the passes before the next step."""
        self.rows, self.counts = rows, counts or rows
        self.watch = self.watch or rows
        self.looks += 1
        self.full = rows and (self.looks > FULL or not self.looked)
        if self.full:
            self.looks, self.looked = 0, True
        if self.counts and len(self._hooked) < len(self.blocks.parameters):
            self._attach()

    def clear(self) -> None:
        """Forget everything that was entered: the step has read it, or the gradients are gone."""
        self.accumulated.clear()
        self.obstacles.clear()
        self.tasks.clear()

    # what the present gradients are made of

    def drop_cleared(self) -> None:
        """Forget what was entered for gradients that are gone; call it before ``accumulated`` is read."""
        for name in [n for n, found in self.accumulated.forwards.items() if found]:
            self._drop_if_cleared(name)

    def unexplained(self) -> list[str]:
        """Blocks whose calls do not explain their gradient; one transfer from the device."""
        unaccounted = self._unaccounted() if self.rows else []
        return sorted({*unaccounted, *contradicted(self.accumulated.checked)})

    def _unaccounted(self) -> list[str]:
        """Blocks whose gradient was not accumulated where the hooks could see it."""
        found = []
        for weight, blocks in self.weights.items():
            grad = self._gradient(weight)
            if grad is None or self.accumulated.forwards.get(weight):
                continue
            asked = [b.name for b in blocks if b.name not in self.blocks.untapped and b.name not in self.new]
            if asked and bool(grad.any()):
                found.extend(asked)
        self.new.clear()
        return found

    # hooks of modules

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called."""
        if module is not self.blocks.model or not (self.active and torch.is_grad_enabled()):
            return
        if self.tasks.idle:
            self.tasks.clear()
        if self.counts:
            self.calls.begin(args, kwargs)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The model returns: through its outputs a backward pass is known to be of this call."""
        on = self.active and self.counts and torch.is_grad_enabled()
        found = self.calls.end(output) if module is self.blocks.model and on else None
        if found is None:
            return
        forward, outputs = found
        for tensor in outputs:
            arrival(tensor).register_hook(Hook(self._returned, forward))  # type: ignore[no-untyped-call]

    def _leave(self, name: str, reason: str) -> None:
        self.blocks.leave(name, reason)

    def _looking_inside(self) -> bool:
        """Whether uses inside composite modules matter: only where their rows do, for seeing them costs."""
        return self.active and self.rows

    def _tap(self, use: Use) -> None:
        """A layer is called."""
        if not (self.active and (self.counts or self.watch) and use.output.requires_grad):
            return
        if use.block.name in self.blocks.untapped:
            return
        forward = self.calls.of_layer() if self.counts else NOWHERE
        if torch.func.debug_unwrap(use.output) is not use.output:
            self.obstacles.add("torch.func.vmap or another transform of torch.func")
            return
        entry = Entry(use, forward)
        if self.counts:
            forward.latest = entry.called
        if not self.watch:
            return
        # taken before any in-place activation, so of this very output
        arrival(use.output).register_hook(Hook(self._arrive, entry))  # type: ignore[no-untyped-call]

    # hooks of tensors, in the order in which they fire

    def _returned(self, forward: Forward, g: Tensor) -> None:
        """A gradient arrives at an output of the model."""
        if self.active and self.counts:
            self.tasks.current().join(forward)

    def _arrive(self, use: Entry, g: Tensor) -> None:
        """A gradient arrives at the output of a layer."""
        if self.active:
            task = self.tasks.current()
            if self.counts:
                task.join(use.forward)
                use.forward.nearest = use.forward.nearest or use.called
            task.arrived[use.block.name].pairs.append((use, g.detach()))

    def _complete(self, name: str, g: Tensor) -> None:
        """The gradient of a parameter is complete, and not yet added to ``.grad``."""
        if self.active:
            with without_autocast(g.device):  # which may be on around the caller's backward pass
                self._completed(name, g)

    def _completed(self, name: str, g: Tensor) -> None:
        if self.active and self.watch and not self.full:
            self._begin_look(name)
        if not (self.active and self.counts):
            return
        self._drop_if_cleared(name)
        if not self.full or g.is_sparse:
            return
        for block in self._read(self.owners, name):
            self.comparison.begin(name, block, g.detach(), self.tasks.current().arrived[block.name])

    def _added(self, name: str, p: Tensor) -> None:
        """It was added: what arrived in this task is now part of ``.grad``."""
        if self.active:
            self.comparison.coarse = autocast_rounding(p.device)
            with without_autocast(p.device):
                self._entered(name, p)

    def _entered(self, name: str, p: Tensor) -> None:
        if self.active and self.watch and not self.full:
            self._look(name, p)
        if not (self.active and self.counts):
            return
        task = self.tasks.current()
        self.calls.claim(task)
        read = self._read(self.owners, name) if self.rows else []
        found = [(block, task.arrived[block.name]) for block in read]
        for block, arrived in found:
            if name in arrived.begun:
                self.comparison.finish(name, block, p, arrived)
        self._take(name, Pass(list(task.forwards), found))

    # helpers

    def _take(self, name: str, taken: Pass) -> None:
        """A backward pass is part of the present gradient of a parameter."""
        if self.accumulated.joined(name, taken) > MOST_PASSES:
            self._overflow()
        self.accumulated.enter(name, taken)

    def _read(self, blocks: Mapping[str, list[Block]], name: str) -> list[Block]:
        """The blocks of a parameter that are still read."""
        return [b for b in blocks.get(name, ()) if b.name not in self.blocks.untapped]

    def _begin_look(self, name: str) -> None:
        """Choose an output of each layer, and read the gradient of its weights before any is added."""
        for block in self._read(self.weights, name):
            if block.reader is not None and block.reader.composite and not self.rows:
                continue  # nothing was seen of it
            cleared = self.blocks.leaf(name).grad is None and self.blocks.parameters[name].grad is None
            if cleared and not self.rows:  # with rows, what was cleared is forgotten as a whole
                self.accumulated.checked.pop(block.name, None)
            self.tasks.current().arrived[block.name].looked = self.comparison.choose(name, block)

    def _look(self, name: str, p: Tensor) -> None:
        """Compare what was added to the weights of that output with what the calls say of it."""
        task = self.tasks.current()
        if p.grad is None or p.grad.is_sparse:
            return
        for block in self.weights.get(name, ()):
            if block.name not in task.arrived:
                continue
            arrived = task.arrived[block.name]
            if not self.rows:
                del task.arrived[block.name]
            if arrived.looked is None:
                continue
            self.comparison.look(name, block, p, arrived)
            if not self.rows:
                arrived.pairs.clear()
                self.accumulated.checked[block.name].append(arrived)

    def _gradient(self, name: str) -> Tensor | None:
        """What a parameter's ``.grad`` holds in this process."""
        return self.blocks.parameters[name].grad

    def _drop_if_cleared(self, name: str) -> None:
        """Forget what was entered for a gradient that is gone."""
        if self.accumulated.forwards[name] and self._cleared(name):
            self.accumulated.forget(name)

    def _cleared(self, name: str) -> bool:
        """Whether the gradient that this parameter's entries made is gone: ``None``, or zeroed in place."""
        grad = self.blocks.parameters[name].grad
        if grad is None:
            return True
        if grad.is_sparse or grad.numel() == 0 or not is_zero(grad.detach()):
            return False
        return not self._was_zero(name)

    def _was_zero(self, name: str) -> bool:
        """Whether this gradient is zero by its rows, and so was not cleared.

        Rows may be other than zero, where inputs are (behind units that are all off) or where they cancel.
        """
        read = [(b, self.accumulated.uses(b)) for b in self.weights.get(name, ())]
        read = [(block, uses) for block, uses in read if uses]
        return bool(read) and all(
            self.comparison.is_zero_by_rows(b, [(use, use.grads) for use in uses]) for b, uses in read
        )

    def _overflow(self) -> None:
        self.clear()
        raise ConfigError(
            Fault(
                f"more than {MOST_PASSES} backward passes were accumulated without a step",
                hint="call optimizer.step(), or optimizer.zero_grad() after passes that no step uses",
            )
        )

    def _attach(self) -> None:
        """Hooks on the parameters; a method that needs neither rows nor counts never gets here."""
        for name, p in self.blocks.parameters.items():
            if name not in self._hooked:
                self._hooked.add(name)
                self._listen_to(name, p)

    def _listen_to(self, name: str, p: Tensor) -> None:
        """Hooks where autograd accumulates the gradient of a parameter."""
        self._keep(p.register_hook(Hook(self._complete, name)))  # type: ignore[no-untyped-call]
        after = p.register_post_accumulate_grad_hook(Hook(self._added, name))  # type: ignore[no-untyped-call]
        self._keep(after)

    def _keep(self, handle: Any) -> None:
        self._handles.append(handle)
