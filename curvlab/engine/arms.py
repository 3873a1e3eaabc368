"""Arms: a method at work on some blocks of a model, and how blocks change from one to another.

Every block is in one arm.  The method proper has an arm, and its fallback one, if it refuses blocks.  An arm
is split when its blocks cease to share what a state holds in common.  Some of them have no gradient in a step
(the others' counts and averages go on alone), or their parameter groups get a momentum of their own.  Both
parts go on from the state that they had.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from curvlab.engine.method import Method, MethodState
from curvlab.engine.state import export, leaves
from curvlab.errors import CheckpointError, ConfigError, CoverageError, Fault
from curvlab.protocols.backend import Backend
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.pieces import whole
from curvlab.protocols.report import Event
from curvlab.protocols.storage import Storage

#: an odd number that sets the seeds of neighboring steps apart from those of neighboring optimizers
SPREAD = 0x9E3779B97F4A7C15
#: another one, for processes
APART = 0xD1B54A32D192ED03

#: what an arm is called that the method's fallback runs
FALLBACK = "fallback"


@dataclass(frozen=True)
class Arm:
    """A method at work on some of the blocks.  ``name`` is unique, in checkpoints too.

    ``treatment`` is the method's name or ``"fallback"``.  ``mine`` are the blocks that this process
    computes with, all of ``blocks`` unless several processes share them out; ``state`` is that of these.
    """

    name: str
    treatment: str
    method: Method
    blocks: Blocks
    mine: Blocks
    state: MethodState

    @property
    def idle(self) -> bool:
        """Whether other processes hold all of its blocks."""
        return not self.mine.members

    @property
    def joint(self) -> bool:
        """Whether its blocks cannot be stepped apart (``is_joint``)."""
        return is_joint(self.method)


def is_joint(method: Method) -> bool:
    """Whether one solve or search is over all blocks of a method."""
    search, solve = method.step.needs(0), method.preconditioner
    searching = search.losses or search.products or search.gradients
    return bool(searching or solve.iterates or solve.needs(0).ggn)


class Arms:
    """The arms of one optimizer.

    ``apart`` maps a block to what all blocks of its arm must have in common; raises ``CoverageError``
    for blocks that neither the method nor a fallback treats.  ``held`` gives those of an arm's blocks that
    this process computes with; every process has the same arms, with other blocks of them.
    """

    def __init__(
        self,
        name: str,
        method: Method,
        backend: Backend,
        generator: torch.Generator,
        emit: Callable[[Event], None],
        held: Callable[[Blocks], Blocks] = lambda blocks: blocks,
    ) -> None:
        self.held = held
        self.share = 0  # the number of this process, where several share the blocks out
        self.name, self.method, self.backend, self.generator = name, method, backend, generator
        self.storage = Storage.of(backend, torch.Generator(device=generator.device))
        self.emit = emit
        self.members: list[Arm] = []
        self.ridge: Callable[[Blocks], Mapping[str, float]] = lambda blocks: {}  # curvature of penalties
        self.unread: set[str] = set()  # blocks that were handed over

    def needs(self, step: int) -> Needs:
        """What step ``step`` (from 0) evaluates, over the method and its fallback."""
        united = GRADIENT_ONLY
        for arm in self.members:
            united = united | arm.method.needs(step)
        return united

    def context(self, arm: Arm, step: int) -> Context:
        """What the parts of an arm are given in a step."""
        damping = arm.method.damping.at(arm.state.damping, step)
        ridge = self.ridge(arm.blocks)
        return Context(step, damping, self.backend, self.generator, self.storage, ridge)

    def begin(self, step: int) -> None:
        """A step begins: what it rounds by chance is drawn from the method's seed and the step's number.

        Processes that share blocks out draw apart, and those that all hold the same alike.
        """
        if self.storage.by_chance:
            noise = self.storage.noise
            assert noise is not None
            seed = self.generator.initial_seed() * SPREAD + self.share * APART + step
            noise.manual_seed(seed % 2**63)

    def needing_objective(self, step: int) -> str:
        """The parts that need an objective in this step, by place."""
        parts = {
            f"{place} {type(part).__name__}": part.needs(step)
            for arm in self.members
            for place, part in (
                ("preconditioner", arm.method.preconditioner),
                ("damping", arm.method.damping),
                ("step", arm.method.step),
            )
        }
        return ", ".join(words for words, needs in parts.items() if needs.objective)

    def taking_part(self, seen: Evaluation) -> list[Arm]:
        """The arms that have a gradient; an arm of which only some blocks have one is split."""
        if not seen.absent:
            return list(self.members)
        for arm in list(self.members):
            missing = [b.name for b in arm.blocks.members if seen.absent.issuperset(map(whole, b.parameters))]
            if missing and len(missing) < len(arm.blocks) and not arm.joint:
                self.split(arm, missing)
        return [arm for arm in self.members if not seen.absent.issuperset(arm.blocks.parameters)]

    def assign(self, blocks: Blocks, names: Iterable[str], apart: Callable[[Block], Any]) -> None:
        """Fresh arms for the blocks of these names."""
        chosen = [blocks[name] for name in names]
        refused = [b for b in chosen if self.refusal(blocks, b)]
        self._require_fallback(blocks, refused)
        kinds: dict[tuple[bool, Any], list[str]] = {}
        for block in chosen:
            kinds.setdefault((block in refused, apart(block)), []).append(block.name)
        if is_joint(self.method) and sum(not falls for falls, _ in kinds) > 1:
            what = f'method "{self.name}" steps all parameters at once, so groups may differ only in lr and'
            hint = "use the same momentum and damping in all groups"
            raise ConfigError(Fault(f"{what} weight_decay", hint=hint))
        # the method's own arms come first: the facts of a step are those of the first
        for (falls, _), members in sorted(kinds.items(), key=lambda item: item[0][0]):
            self._add(FALLBACK if falls else self.name, blocks.select(members))

    def refusal(self, blocks: Blocks, block: Block) -> str:
        """Why the method proper does not treat a block, or nothing."""
        return self.method.preconditioner.refuses(self._as_seen(blocks, block)) or ""

    def split(self, arm: Arm, names: Collection[str]) -> tuple[Arm, Arm]:
        """Two arms in place of one: that of the blocks in ``names``, and that of the others."""
        of = arm.blocks.layout.names
        first = self._carved(arm, arm.name, [n for n in of if n in names])
        second = self._carved(arm, self._free(arm.name), [n for n in of if n not in names])
        at = self.members.index(arm)
        self.members[at : at + 1] = [first, second]
        return first, second

    def hand_over(self, names: Collection[str]) -> bool:
        """Give blocks whose layers can no longer be read to the fallback, or settle the method without them.

        Whether anything changed; a method without a fallback keeps them, with the curvature that they have.
        """
        changed, known = False, self.unread
        self.unread = known | set(names)
        if self.method.fallback is None or self.unread == known:
            return changed
        for arm in list(self.members):
            unread = [n for n in arm.blocks.layout.names if n in names and n not in known]
            if arm.treatment == FALLBACK or not unread:
                continue
            changed = True
            leaving = [n for n in unread if self.refusal(arm.blocks, arm.blocks[n])]
            if len(leaving) < len(unread):
                self._settle(arm)
            if not leaving:
                continue
            arm = next(a for a in self.members if a.name == arm.name)
            self._require_fallback(arm.blocks, [arm.blocks[n] for n in leaving])
            if len(leaving) < len(arm.blocks):
                arm, _ = self.split(arm, leaving)
            self.members.remove(arm)
            self._add(FALLBACK, arm.blocks)
        return changed

    def drop(self, names: Collection[str]) -> None:
        """Forget blocks that have become parts of others."""
        for arm in list(self.members):
            leaving = [n for n in arm.blocks.layout.names if n in names]
            if leaving and len(leaving) < len(arm.blocks):
                arm, _ = self.split(arm, leaving)
            if leaving:
                self.members.remove(arm)

    def renew(self) -> None:
        """Every arm begins anew, with a fresh state."""
        for arm in list(self.members):
            self.update(arm, state=self._fresh(arm.method, arm.mine, self.generator))

    def update(self, arm: Arm, **fields: Any) -> Arm:
        """Replace fields of an arm."""
        other = replace(arm, **fields)
        self.members[self.members.index(arm)] = other
        return other

    # as data

    def layout(self) -> list[list[Any]]:
        """Name, treatment and blocks of every arm, for a checkpoint."""
        return [[a.name, a.treatment, list(a.blocks.layout.names)] for a in self.members]

    def lay_out(self, blocks: Blocks, layout: Sequence[Sequence[Any]]) -> None:
        """Fresh arms, if they are laid out in another way, or know of other layers that cannot be read.

        Raises ``CheckpointError`` if the layout is not one of these blocks.
        """
        unread = set(blocks.untapped)
        if layout == self.layout() and unread == self.unread:
            return
        self.unread = unread
        names = sorted(n for _, _, members in layout for n in members)
        if names != sorted(blocks.layout.names):
            raise CheckpointError(
                "the state belongs to another method or model: its blocks differ from this model's"
            )
        self.members = []
        for name, treatment, members in layout:
            self._add(treatment, blocks.select(members), name)

    # helpers

    def _as_seen(self, blocks: Blocks, block: Block) -> Block:
        """A block; no longer a layer if its calls do not explain its gradient and others could treat it."""
        if self.method.fallback is None or block.name not in blocks.untapped:
            return block
        known = blocks.unread.get(block.name, "the calls of its layer do not explain its gradient")
        return replace(block, reader=None, reason=known)

    def _require_fallback(self, blocks: Blocks, refused: Sequence[Block]) -> None:
        fallback = self.method.fallback
        if refused and fallback is None:
            raise CoverageError(
                *(
                    Fault(
                        f'method "{self.name}" does not treat {", ".join(b.parameters)}:'
                        f" {self.refusal(blocks, b)}",
                        hint='add a [method.fallback] that treats any parameter, such as use = "adamw"',
                    )
                    for b in refused
                )
            )
        if refused and fallback is not None:
            still = [b for b in refused if fallback.preconditioner.refuses(b)]
            if still:
                parameters = ", ".join(p for b in still for p in b.parameters)
                raise CoverageError(Fault(f"neither the method nor its fallback treats {parameters}"))

    def _add(self, treatment: str, blocks: Blocks, name: str = "") -> None:
        method = self.method.fallback if treatment == FALLBACK else self.method
        assert method is not None, "a fallback was required before"
        method = method.settled([self._as_seen(blocks, b) for b in blocks.members])
        mine = self.held(blocks)
        state = self._fresh(method, mine, self.generator)
        self.members.append(Arm(name or self._free(treatment), treatment, method, blocks, mine, state))

    def _settle(self, arm: Arm) -> None:
        """The method as it treats the arm's blocks now, with the state that it had where that still fits."""
        method = arm.method.settled([self._as_seen(arm.blocks, b) for b in arm.blocks.members])
        state = self._fresh(method, arm.mine, torch.Generator(device=self.generator.device))
        if not transfer(arm.state, state):
            self.emit(
                Event("state-restarted", -1, {"arm": arm.name, "blocks": list(arm.blocks.layout.names)})
            )
        self.update(arm, method=method, state=state)

    def _fresh(self, method: Method, blocks: Blocks, generator: torch.Generator) -> MethodState:
        like = blocks.layout.zeros(like=blocks.like.detach())
        damping = method.damping.at(method.damping.init(), 0)
        state = method.init(like, Context(0, damping, self.backend, generator, self.storage))
        if state.master is not None:
            state.master.copy_(blocks.read())
        return state

    def _carved(self, arm: Arm, name: str, blocks: Sequence[str]) -> Arm:
        """An arm of some of the blocks, with their part of the whole one's state."""
        some = arm.blocks.select(blocks)
        mine = self.held(some)
        spare = torch.Generator(device=self.generator.device)  # drawing for a state that is then overwritten
        state = self._fresh(arm.method, mine, spare)
        if not transfer(arm.state, state):
            self.emit(Event("state-restarted", -1, {"arm": arm.name, "blocks": list(blocks)}))
        return replace(arm, name=name, blocks=some, mine=mine, state=state)

    def _free(self, name: str) -> str:
        taken = {arm.name for arm in self.members}
        numbered = (f"{name} {k}" for k in range(2, len(taken) + 3))
        return next(n for n in (name, *numbered) if n not in taken)


def transfer(old: MethodState, new: MethodState) -> bool:
    """Fill a fresh state of some of the blocks with their part of a state of all.

    False, and nothing is filled, if the old state does not hold every leaf of the new one by itself.
    """
    tensors, plain = export(old)
    mine, own = export(new)
    known = all(p in tensors and tensors[p].shape == t.shape for p, t in mine.items())
    if not known or not set(own) <= set(plain):
        return False
    for path, tensor in mine.items():
        tensor.copy_(tensors[path])
    for leaf in leaves(new):
        if leaf.replace is not None and leaf.value != plain[leaf.path]:
            leaf.replace(plain[leaf.path])
    return True
