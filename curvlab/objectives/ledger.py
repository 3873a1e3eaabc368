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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._C import _current_graph_task_id as current_task

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.lookups import AnyRows, Lookups
from curvlab.linalg.untraced import untraced
from curvlab.linalg.work import autocast_rounding, without_autocast, work_dtype
from curvlab.model.arrangement import Called
from curvlab.model.captured import gradient_rows, input_rows, sums_coarsely
from curvlab.model.taps import arrival, listen
from curvlab.model.use import Use
from curvlab.objectives.examples import Declared, Forward, begun, outside
from curvlab.protocols.blocks import Block, Blocks, as_real
from curvlab.protocols.pieces import whole
from curvlab.protocols.reader import as_dtype

#: most backward passes that one step accumulates; more without a step raise an error, so memory is bounded
MOST_PASSES = 1024
#: graph tasks that are remembered: one inside the other, as reentrant checkpoints are
MOST_NESTED = 8
#: entries of a gradient that are looked at before all of it is, to find out whether it was zeroed
SAMPLE = 64
#: rounding of sums in another order, in units of ε, that two ways to one number may differ by
ROUNDING = 1e3
#: the same for products whose operands are rounded to the few bits of bfloat16, float16 or TF32
COARSE = 16.0
TF32 = 2.0**-10

#: steps between two comparisons along a direction
FULL = 8
#: the same relative to the bound of Cauchy and Schwarz
FINE = 64.0

#: no graph task is under way
IDLE = -1
#: what layers belong to while examples are not counted
NOWHERE = Forward(None)


class Entry:
    """One call of one layer: its input, its rows once they are wanted, and the gradient rows entered.

    ``transposed``: it uses the transposed matrix of its block.
    """

    __slots__ = (
        "block",
        "forward",
        "grads",
        "kept",
        "module",
        "output_dtype",
        "reader",
        "shape",
        "transposed",
        "x",
    )

    def __init__(self, use: Use, forward: Forward) -> None:
        self.block, self.module, self.reader, self.x = use.block, use.module, use.reader, use.x
        self.shape, self.output_dtype = use.output.shape, use.output.dtype
        self.transposed, self.forward = use.transposed, forward
        self.kept: AnyRows | None = None
        self.grads: Tensor | None = None

    @property
    def called(self) -> Called:
        """What its arrangement by example follows from."""
        axes = self.reader.axes(self.module, self.x, self.shape)
        return Called(axes, self.reader.rows(self.module, self.x, self.shape))

    def inputs(self) -> AnyRows:
        """The input as rows ``[m, r, i]``, bias column included; made once."""
        if self.kept is None:
            self.kept = input_rows(self.reader, self.module, self.x, self.output_dtype)
        return self.kept

    def outputs(self, g: Tensor) -> Float[Tensor, "m s o"]:
        """An output gradient as rows."""
        return gradient_rows(self.reader, self.module, g.reshape(self.shape), self.x)

    def along(
        self, u: Tensor, v: Tensor, start: int, rows: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """``uᵀ M v`` of what it adds to the block by gradient rows ``[m, s, o]``, and a bound on it.

        v is on the columns from ``start`` on.
        """
        k, a = self.reader.groups(self.module), self.inputs().to(dtype)
        o = self.reader.shape(self.module)[0]
        flat = rows.to(dtype).reshape(-1, o)
        if self.transposed:
            left, right = flat @ v, _pushed(a, u, 0)
        else:
            left = flat @ u if k == 1 else (flat * u).view(-1, k, o // k).sum(-1).flatten()
            right = _pushed(a, v, start)
        return left @ right, left.abs() @ right.abs()

    def row(self, k: int, g: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What it adds to row k of the first parameter's columns of the block, and a bound on it."""
        if not self.transposed:
            x, g = as_dtype(self.x, dtype), g.reshape(self.shape).to(dtype)
            return self.reader.row(self.module, x, g, k)
        a = self.inputs().to(dtype)
        flat = self.outputs(g).to(dtype).flatten(0, 1)
        column = (a.index == k).to(dtype) if isinstance(a, Lookups) else a[..., k]
        size = torch.linalg.vector_norm(flat) * torch.linalg.vector_norm(column)
        return column.flatten() @ flat, size


def _pushed(rows: AnyRows, v: Tensor, start: int) -> Float[Tensor, " r"]:
    """Rows ``[*r, d]`` times a vector on the columns from ``start`` on."""
    if isinstance(rows, Lookups):
        return v[rows.index.reshape(-1)]
    return rows.reshape(-1, rows.shape[-1])[:, start : start + len(v)] @ v


class Arrived:
    """Gradients of one block that arrived in one graph task, and how far they explain its parameters'.

    ``begun`` holds, for each parameter, a random direction and ``.grad`` along it before anything is added;
    ``errors`` the difference between what is added and its value by the rows, and the bound for rounding.
    They stay tensors and leave the device together, when the step reads them.
    """

    __slots__ = ("begun", "entered", "errors", "looked", "pairs")

    def __init__(self) -> None:
        self.pairs: list[tuple[Entry, Tensor]] = []
        self.begun: dict[str, tuple[Tensor, Tensor, int, Tensor | None]] = {}
        self.errors: dict[str, tuple[Tensor, Tensor]] = {}
        self.entered = False
        self.looked: tuple[int, Tensor | None] | None = None  # an output, and its weights' gradient before


class Task:
    """One graph task: what arrived in it, and the calls of the model that it runs through."""

    def __init__(self) -> None:
        self.arrived: dict[str, Arrived] = defaultdict(Arrived)
        self.forwards: list[Forward] = []

    def join(self, forward: Forward) -> None:
        """The task runs through this call of the model, which so shares the loss of the others in it."""
        if not any(f is forward for f in self.forwards):
            forward.joined = True
            if self.forwards:
                self.forwards[0].merge(forward)
            self.forwards.append(forward)


@dataclass(frozen=True)
class Pass:
    """A backward pass that reached a parameter: the calls of the model in it, and what arrived by block."""

    forwards: list[Forward]
    arrived: list[tuple[Block, Arrived]]


class Ledger:
    """Keeps, for the parameters of ``blocks``, what their ``.grad`` is made of.

    ``rows``: whether layer rows are kept; ``counts``: whether examples are; ``watch``: whether layers without
    rows are checked all the same, since some steps read them.  Hooks are removed when the
    ledger is no longer referenced.  Holds the rows of what was accumulated since the gradients were
    cleared; at most ``MOST_PASSES`` backward passes of them.
    """

    def __init__(self, blocks: Blocks, declared: Declared, *, tokens: bool = False) -> None:
        self.blocks, self.declared, self.tokens = blocks, declared, tokens
        self.rows = self.counts = self.watch = False
        self.active = True
        self.current: Forward | None = None
        self.opaque: list[Forward] = []  # their outputs could not be looked into
        self.obstacles: set[str] = set()
        self.coarse = 0.0
        self.tasks: dict[int, Task] = {}
        self.entries: dict[str, dict[Entry, None]] = defaultdict(dict)
        self.checked: dict[str, list[Arrived]] = defaultdict(list)
        self.forwards: dict[str, dict[Forward, None]] = defaultdict(dict)  # by parameter
        self.lost: dict[str, set[Forward]] = defaultdict(set)  # by block: cleared before this step
        self.chance = Random(0)
        self.full = self.looked = False  # whether gradients are compared along a direction, and ever were
        self.looks = 0  # steps since
        self.generators: dict[torch.device, torch.Generator] = {}
        self.weights: dict[str, list[Block]] = defaultdict(list)  # by the first parameter of each layer block
        self.owners: dict[str, list[Block]] = defaultdict(list)
        self._hooked: set[str] = set()
        self._handles: list[Any] = []
        weakref.finalize(self, _remove, self._handles).atexit = False
        self._keep(blocks.model.register_forward_pre_hook(Hook(self._begin), with_kwargs=True))
        self._keep(blocks.model.register_forward_hook(Hook(self._end)))
        self._tapped: set[str] = set()
        self.new: set[str] = set()  # layer blocks whose gradient may be older than their hooks
        self.cover(blocks)
        self.new.clear()

    def cover(self, blocks: Blocks) -> None:
        """Take on more blocks of the same model; layers and parameters known already are left alone."""
        self.blocks = blocks
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
        for uses in self.entries.values():
            for use in uses:
                use.grads = None  # its graph may be kept, and go backward again
        for kept in (self.entries, self.checked, self.forwards, self.lost, self.obstacles):
            kept.clear()
        self._settle()

    # what the present gradients are made of

    def drop_cleared(self) -> None:
        """Forget what was entered for gradients that are gone; before the next three are asked."""
        for name in [n for n, found in self.forwards.items() if found]:
            self._drop_if_cleared(name)

    def uses(self, block: Block) -> list[Entry]:
        """The calls that the gradient of a block's weight is made of."""
        return list(self.entries.get(block.name, ()))

    def alive(self) -> list[Forward]:
        """The calls of the model that the present gradients are made of."""
        found: dict[Forward, None] = {}
        for forwards in self.forwards.values():
            found.update(forwards)
        return list(found)

    def unexplained(self) -> list[str]:
        """Blocks whose calls do not explain their gradient; one transfer from the device."""
        unaccounted = self._unaccounted() if self.rows else []
        return sorted({*unaccounted, *self._contradicted()})

    def _unaccounted(self) -> list[str]:
        """Blocks whose gradient was not accumulated where the hooks could see it."""
        found = []
        for weight, blocks in self.weights.items():
            grad = self._gradient(weight)
            if grad is None or self.forwards.get(weight):
                continue
            asked = [b.name for b in blocks if b.name not in self.blocks.untapped and b.name not in self.new]
            if asked and bool(grad.any()):
                found.extend(asked)
        self.new.clear()
        return found

    def _contradicted(self) -> list[str]:
        """Blocks of which rows and gradients differ along the random direction."""
        named = [(n, pair) for n, found in self.checked.items() for a in found for pair in a.errors.values()]
        if not named:
            return []
        errors = torch.stack([error for _, (error, _) in named])
        bounds = torch.stack([bound for _, (_, bound) in named])
        wrong = (errors > bounds).tolist()  # false for NaN: the step refuses it anyway
        return [name for (name, _), bad in zip(named, wrong, strict=True) if bad]

    # hooks of modules

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called."""
        if module is not self.blocks.model or not (self.active and torch.is_grad_enabled()):
            return
        if current_task() == IDLE:
            self._settle()
        if self.counts:
            self.current = begun(self.declared, args, kwargs)
            self.current.task = current_task()

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The model returns: through its outputs a backward pass is known to be of this call."""
        forward = self.current
        on = self.active and self.counts and torch.is_grad_enabled()
        if module is not self.blocks.model or not on or forward is None:
            return
        self.current = None
        outputs = forward.returned(output, tokens=self.tokens)
        if not outputs:
            self.opaque = [f for f in self.opaque[-SAMPLE:] if not f.joined] + [forward]
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
        forward = self._forward() if self.counts else NOWHERE
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

    def _forward(self) -> Forward:
        """The call of the model that a layer's call belongs to."""
        if self.current is not None and self.current.task == current_task():
            return self.current
        if current_task() == IDLE:
            self._settle()
            return outside(self.declared)
        return self._around() or outside(self.declared)

    def _around(self) -> Forward | None:
        """The call of the model that the graph task under way, or one around it, runs through.

        Reentrant checkpoints call layers inside a backward pass, and run a backward pass of their own.
        """
        for task in reversed(self.tasks.values()):
            if task.forwards:
                return task.forwards[-1]
        return None

    # hooks of tensors, in the order in which they fire

    def _returned(self, forward: Forward, g: Tensor) -> None:
        """A gradient arrives at an output of the model."""
        if self.active and self.counts:
            self._task().join(forward)

    def _arrive(self, use: Entry, g: Tensor) -> None:
        """A gradient arrives at the output of a layer."""
        if self.active:
            task = self._task()
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
            self._begin_check(name, block, g.detach(), self._task().arrived[block.name])

    def _added(self, name: str, p: Tensor) -> None:
        """It was added: what arrived in this task is now part of ``.grad``."""
        if self.active:
            self.coarse = autocast_rounding(p.device)  # of products that a backward pass makes under it
            with without_autocast(p.device):
                self._entered(name, p)

    def _entered(self, name: str, p: Tensor) -> None:
        if self.active and self.watch and not self.full:
            self._look(name, p)
        if not (self.active and self.counts):
            return
        task = self._task()
        if not task.forwards:
            around = self._around()
            unseen = [f for f in self.opaque if not f.joined]
            for forward in unseen or [around if around is not None else outside(self.declared)]:
                task.join(forward)
        read = self._read(self.owners, name) if self.rows else []
        found = [(block, task.arrived[block.name]) for block in read]
        for block, arrived in found:
            if name in arrived.begun:
                self._check(name, block, p, arrived)
        self._take(name, Pass(list(task.forwards), found))

    # helpers

    def _take(self, name: str, taken: Pass) -> None:
        """A backward pass is part of the present gradient of a parameter."""
        self.forwards[name].update(dict.fromkeys(taken.forwards))
        if len(self.forwards[name]) > MOST_PASSES:
            self._overflow()
        for block, arrived in taken.arrived:
            self._enter(name, block, arrived)

    def _read(self, blocks: Mapping[str, list[Block]], name: str) -> list[Block]:
        """The blocks of a parameter that are still read."""
        return [b for b in blocks.get(name, ()) if b.name not in self.blocks.untapped]

    def _enter(self, name: str, block: Block, arrived: Arrived) -> None:
        """What arrived for a block is part of this parameter's gradient."""
        if not arrived.entered:
            arrived.entered = True
            self.checked[block.name].append(arrived)
        if name == whole(block.parameters[0]):
            for use, g in arrived.pairs:
                if use.transposed:  # the statistics are those of the direct uses
                    continue
                rows = use.outputs(g)
                use.grads = rows if use.grads is None else use.grads + rows
                self.entries[block.name][use] = None

    @torch.no_grad()
    def _begin_check(self, name: str, block: Block, g: Tensor, arrived: Arrived) -> None:
        """Draw u and v, and read ⟨.grad, u vᵀ⟩ before the gradient is added."""
        generator, o = self._generator(g.device), block.shape[0]
        columns = [self.blocks.width(block, p) for p in block.parameters]
        place = _place(block, name)
        work = _work(g)
        u = torch.randn(o, generator=generator, dtype=work, device=g.device)
        v = torch.randn(columns[place], generator=generator, dtype=work, device=g.device)
        before = self.blocks.leaf(name).grad
        piece = block.parameters[place]
        along = None
        if before is not None:
            along = u @ (self.blocks.matrix(block, piece, before.detach()).to(work) @ v)
        arrived.begun[name] = u, v, sum(columns[:place]), along

    @torch.no_grad()
    def _check(self, name: str, block: Block, p: Tensor, arrived: Arrived) -> None:
        """Compare what was added to ``.grad``, along the direction, with its value by the rows."""
        u, v, start, before = arrived.begun.pop(name)
        assert p.grad is not None
        piece = block.parameters[_place(block, name)]
        added = u @ (self.blocks.matrix(block, piece, p.grad.detach()).to(u.dtype) @ v)
        size = added.abs()
        if before is not None:
            added, size = added - before, torch.maximum(size, before.abs())
        explained, coarse = added.new_zeros(()), 0.0
        for use, arriving in arrived.pairs:
            value, bound = use.along(u, v, start, use.outputs(arriving), u.dtype)
            explained, size = explained + value, size + bound
            coarse = max(coarse, self.coarse, _coarse(arriving, p, use))
        tolerance = max(ROUNDING * torch.finfo(u.dtype).eps, COARSE * coarse)
        arrived.errors[name] = (added - explained).abs(), tolerance * size

    def _begin_look(self, name: str) -> None:
        """Choose an output of each layer, and read the gradient of its weights before any is added."""
        for block in self._read(self.weights, name):
            if block.reader is not None and block.reader.composite and not self.rows:
                continue  # nothing was seen of it
            k, grad = self.chance.randrange(block.shape[0]), self.blocks.leaf(name).grad
            cleared = grad is None and self.blocks.parameters[name].grad is None
            if cleared and not self.rows:  # with rows, what was cleared is forgotten as a whole
                self.checked.pop(block.name, None)
            piece = block.parameters[0]
            before = None if grad is None else self.blocks.matrix(block, piece, grad.detach())[k].clone()
            self._task().arrived[block.name].looked = k, before

    @torch.no_grad()
    def _look(self, name: str, p: Tensor) -> None:
        """Compare what was added to the weights of that output with what the calls say of it."""
        task = self._task()
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
            arrived.errors[name] = self._looked(block, p.grad.detach(), arrived, p, *arrived.looked)
            if not self.rows:
                arrived.pairs.clear()
                self.checked[block.name].append(arrived)

    def _looked(
        self, block: Block, grad: Tensor, arrived: Arrived, p: Tensor, k: int, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """How far the calls are from what was added to row k of a block, and the bound for rounding."""
        work = _work(p)
        now = self.blocks.matrix(block, block.parameters[0], grad)[k].to(work)
        before = None if before is None else before.to(work)
        added = now if before is None else now - before
        size, coarse, explained = torch.linalg.vector_norm(added), 0.0, torch.zeros_like(added)
        if before is not None:
            size = size + torch.linalg.vector_norm(before)
        for use, g in arrived.pairs:
            values, bound = use.row(k, g, work)
            explained, size = explained + values, size + bound
            coarse = max(coarse, self.coarse, _coarse(g, p, use))
        tolerance = max(FINE * torch.finfo(work).eps, COARSE * coarse)
        # of smaller gradients the norms above are 0: their squares underflow
        least = torch.finfo(work).tiny ** 0.5
        return (added.flatten() - explained).abs().amax(), tolerance * size + least

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(0)
        return self.generators[device]

    def _task(self) -> Task:
        """The graph task under way; of those before it, which may be around it, the last few are kept."""
        task = current_task()
        if task not in self.tasks:
            for old in list(self.tasks)[: -MOST_NESTED or None]:
                del self.tasks[old]
            self.tasks[task] = Task()
        return self.tasks[task]

    def _settle(self) -> None:
        """No graph task is under way: what arrived and was not entered belongs to no step."""
        self.tasks.clear()

    def _gradient(self, name: str) -> Tensor | None:
        """What a parameter's ``.grad`` holds in this process."""
        return self.blocks.parameters[name].grad

    def _drop_if_cleared(self, name: str) -> None:
        """Forget what was entered for a gradient that is gone."""
        if self.forwards[name] and self._cleared(name):
            self._forget(name)

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
        read = [b for b in self.weights.get(name, ()) if self.entries.get(b.name)]
        return bool(read) and all(
            self._zero_by_rows(b, [(use, use.grads) for use in self.entries[b.name]]) for b in read
        )

    @torch.no_grad()
    def _zero_by_rows(self, block: Block, rows: Iterable[tuple[Entry, Tensor | None]]) -> bool:
        """Whether a block's rows add up to no gradient of its first parameter, along a random direction."""
        p = block.parameters[0]
        value = self.blocks.leaf(whole(p))
        work, o = _work(value), block.shape[0]
        generator = self._generator(value.device)
        u = torch.randn(o, generator=generator, dtype=work, device=value.device)
        v = torch.randn(self.blocks.width(block, p), generator=generator, dtype=work, device=value.device)
        explained, size, coarse = u.new_zeros(()), u.new_zeros(()), 0.0
        for use, grads in rows:
            if grads is not None:
                part, bound = use.along(u, v, 0, grads, work)
                explained, size = explained + part, size + bound
                coarse = max(coarse, self.coarse, _coarse(grads, value, use))
        tolerance = max(ROUNDING * torch.finfo(work).eps, COARSE * coarse)
        least = torch.finfo(value.dtype).smallest_normal * u.abs().sum() * v.abs().sum()  # underflow
        return bool(explained.abs() <= tolerance * size + least)

    def _forget(self, name: str) -> None:
        for block in self.weights.get(name, ()):
            self.lost[block.name].update(self.forwards[name])
            for use in self.entries.pop(block.name, ()):
                use.grads = None
            self.checked.pop(block.name, None)
        self.forwards.pop(name, None)

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


def is_zero(t: Tensor) -> bool:
    """Whether every entry is zero; of most others a few entries are looked at."""
    if bool(t.reshape(-1)[:SAMPLE].any()) if t.is_contiguous() else bool(t.any()):
        return False
    return not bool(t.any())


def _place(block: Block, parameter: str) -> int:
    """Which of a block's parameters is this one, or a piece of it."""
    return [whole(p) for p in block.parameters].index(parameter)


def _coarse(arriving: Tensor, g: Tensor, use: Entry) -> float:
    """Relative error of products where the model computes in halves, or TF32 rounds their operands."""
    if sums_coarsely(use.reader, use.output_dtype):
        return 1.0 / COARSE
    coarser = min((arriving.dtype, as_real(g).dtype), key=lambda dtype: -torch.finfo(dtype).eps)
    if coarser != _work(g):
        return float(torch.finfo(coarser).eps)
    return TF32 if g.is_cuda and g.dtype == torch.float32 else 0.0


def _remove(handles: Iterable[Any]) -> None:
    for handle in handles:
        handle.remove()


def _work(t: Tensor) -> torch.dtype:
    """What gradients are compared in: their dtype, that of their parts if complex, float32 at least."""
    return work_dtype(as_real(t).dtype)
