"""The live settings of ``param_groups``, as methods of arms and rates of parameters.

``lr`` and ``weight_decay`` are each parameter's own.  Momentum, betas, damping and eps belong to an arm:
blocks whose groups differ in them are in different arms.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from torch import nn

from curvlab.engine.arms import FALLBACK, Arm, Arms
from curvlab.engine.live import lacking, live, with_group
from curvlab.engine.method import Method
from curvlab.engine.rates import ParameterRates
from curvlab.errors import ConfigError, Fault
from curvlab.protocols.blocks import Block
from curvlab.protocols.pieces import whole

#: keys that all blocks of an arm share
SHARED = ("momentum", "betas", "damping", "eps")
DECAY = "weight_decay"
#: the largest rate so far of a group whose method was made with a rate of zero
PEAK = "peak_lr"
Group = MutableMapping[str, Any]


class Settings:
    """Reads torch's ``param_groups`` before a step.

    A group's ``lr`` over ``rule_lr``, the method's own rate when it was made, multiplies the rates of the
    method and of its fallback.  If that rate was zero, ``lr`` is the method's rate itself, and its share in
    ``peak_lr``, the largest so far, multiplies the fallback's.  ``weight_decay`` reaches the fallback once it
    differs from the method's.  Raises ``ConfigError`` for a key that the method does not have.
    """

    def __init__(self, method: Method, names: dict[nn.Parameter, str]) -> None:
        self.initial = live(method)
        self.fallback_decay = live(method.fallback).get(DECAY, 0.0) if method.fallback is not None else 0.0
        self.refused = lacking(method)
        self.names = names
        self._index: dict[str, int] = {}
        self._seen: list[tuple[Any, ...]] = []
        self._sizes: list[int] = []

    def shared(self, groups: Sequence[Group], block: Block) -> tuple[Any, ...]:
        """What a block's arm has in common with it; raises ``ConfigError`` if its own groups disagree."""
        self._look_up(groups)
        found = {tuple(groups[self._index[whole(p)]].get(key) for key in SHARED) for p in block.parameters}
        if len(found) > 1:
            what = f'the parameters of layer "{block.name}" are in groups that differ in {_differing(found)}'
            raise ConfigError(
                Fault(what, hint="these settings hold for a whole layer; give its groups the same values")
            )
        return next(iter(found))

    def forget(self) -> None:
        """Look at everything anew before the next step: there are other arms, or other groups."""
        self._seen, self._sizes = [], []

    def apply(self, groups: Sequence[Group], arms: Arms) -> None:
        """Bring every arm to the present values; costs a comparison while nothing has changed."""
        for g in groups:
            if PEAK in g:
                g[PEAK] = max(g[PEAK], float(g["lr"]))
        now = [tuple(g.get(key) for key in (*SHARED, DECAY)) for g in groups]
        for g in groups:
            for key in self.refused:
                if key in g:
                    raise ConfigError(
                        Fault(
                            f'{key} in param_groups is not a setting of method "{arms.name}"; remove it',
                            path=key,
                        )
                    )
        if now == self._seen and [len(g["params"]) for g in groups] == self._sizes:
            return
        self._look_up(groups)
        for arm in list(arms.members):
            self._apart(groups, arms, arm)
        for arm in list(arms.members):
            self._turn(groups, arms, arm)
        self._seen = now

    def rates(self, groups: Sequence[Group], arm: Arm, absent: frozenset[str]) -> ParameterRates:
        """How the parameters of an arm move in this step."""
        names, falls = arm.blocks.parameters, arm.treatment == FALLBACK
        still = absent.intersection(names) if absent else absent
        if len(groups) == 1:
            return ParameterRates(arm.mine, share(groups[0], falls), absent=still)
        mine = {p: groups[self._index[p]] for p in names}
        rates = {p: share(g, falls) for p, g in mine.items()}
        decays = {p: self._decay(arm, g) for p, g in mine.items()}
        own = max(rates.values(), key=abs)
        strongest = max(decays.values())
        return ParameterRates(
            arm.mine,
            own,
            {p: r / own for p, r in rates.items() if r != own},
            {p: d / strongest for p, d in decays.items() if d != strongest},
            still,
        )

    # helpers

    def _look_up(self, groups: Sequence[Group]) -> None:
        sizes = [len(g["params"]) for g in groups]
        if sizes != self._sizes:
            self._index = {self.names[p]: k for k, g in enumerate(groups) for p in g["params"]}
            self._sizes = sizes

    def _apart(self, groups: Sequence[Group], arms: Arms, arm: Arm) -> None:
        """Split an arm until its blocks agree."""
        kinds: dict[tuple[Any, ...], list[str]] = {}
        for block in arm.blocks.members:
            kinds.setdefault(self.shared(groups, block), []).append(block.name)
        if len(kinds) > 1 and arm.joint:
            what = f'method "{arms.name}" steps all parameters at once, so groups may differ only in lr and'
            hint = f"use the same {_differing(set(kinds))} in all groups"
            raise ConfigError(Fault(f"{what} weight_decay", hint=hint))
        for names in list(kinds.values())[:-1]:
            _, arm = arms.split(arm, names)

    def _turn(self, groups: Sequence[Group], arms: Arms, arm: Arm) -> None:
        first = groups[self._index[whole(arm.blocks.members[0].parameters[0])]]
        keys = SHARED if arm.treatment != FALLBACK else ()
        wanted = {key: first[key] for key in keys if key in self.initial}
        if DECAY in self.initial and DECAY in live(arm.method):
            wanted[DECAY] = max(self._decay(arm, groups[self._index[p]]) for p in arm.blocks.parameters)
        method, present = arm.method, live(arm.method)
        for key, value in wanted.items():
            if present[key] != (tuple(value) if key == "betas" else value):
                method = with_group(method, key, value)
        if method is not arm.method:
            arms.update(arm, method=method)

    def _decay(self, arm: Arm, group: Group) -> float:
        """The weight decay of a group in an arm: the fallback has its own while the group's is untouched."""
        value = group.get(DECAY, 0.0)
        if arm.treatment == FALLBACK and value == self.initial.get(DECAY, 0.0):
            return float(self.fallback_decay)
        return float(value)


def share(group: Group, falls: bool = False) -> float:
    """What a group's rate multiplies the method's own by, or its fallback's."""
    own = float(group[PEAK] if falls and PEAK in group else group["rule_lr"])
    return float(group["lr"]) / own if own else 0.0


def _differing(found: set[tuple[Any, ...]]) -> str:
    return ", ".join(key for k, key in enumerate(SHARED) if len({values[k] for values in found}) > 1)
