"""Samplers and pruners of Optuna by the names of their classes; Optuna is an extra."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from curvlab.config.tree import Node, describe, plain
from curvlab.errors import Fault, raised
from curvlab.registry.suggest import advice

Kind = Literal["sampler", "pruner"]
KINDS: tuple[Kind, ...] = ("sampler", "pruner")

#: class, if a sweep names none; these are Optuna's own defaults
_DEFAULTS: Mapping[Kind, str] = {"sampler": "TPESampler", "pruner": "MedianPruner"}
_BASES: Mapping[Kind, str] = {"sampler": "BaseSampler", "pruner": "BasePruner"}
#: samplers that keep their place in the storage, and need one seed throughout
_ONE_SEED = ("QMCSampler",)


@dataclass(frozen=True)
class Named:
    """A class of ``optuna.samplers`` or ``optuna.pruners``, and the arguments of its constructor.

    An argument that is a table with ``use`` is another class of the same module.
    """

    kind: Kind
    use: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, seed: int | None = None) -> Any:
        """The object; ``seed`` goes to a class that takes one, unless the arguments have it."""
        cls = classes(self.kind)[self.use]
        options = {key: self._argument(value) for key, value in self.options.items()}
        if seed is not None and "seed" in inspect.signature(cls).parameters:
            options.setdefault("seed", seed)
        return cls(**options)

    def seed_of(self, seed: int, trial: int) -> int:
        """The seed for proposing a trial.

        A sampler is made anew for each trial, with a seed of its own, so that a sweep that was stopped
        proposes what it would have proposed.
        """
        return seed if self.use in _ONE_SEED else (seed * 1_000_003 + trial) % 2**32

    def _argument(self, value: Any) -> Any:
        if isinstance(value, dict) and "use" in value:
            inner = {key: one for key, one in value.items() if key != "use"}
            return Named(self.kind, str(value["use"]), inner).build()
        return value


def classes(kind: Kind) -> dict[str, type]:
    """The classes of a kind that Optuna has."""
    import optuna

    module = optuna.samplers if kind == "sampler" else optuna.pruners
    base = getattr(module, _BASES[kind])
    public = {name: getattr(module, name) for name in module.__all__}
    return {n: c for n, c in public.items() if isinstance(c, type) and issubclass(c, base) and c is not base}


def named(node: Node | None, kind: Kind, wanted: bool, faults: list[Fault]) -> Named:
    """What a table names, or the default; ``wanted`` says whether the search is Optuna's."""
    default = Named(kind, _DEFAULTS[kind])
    if not wanted:
        if node is not None:
            faults.append(node.fault(f'{kind} is for search = "optuna"', f"remove {kind}"))
        return default
    if find_spec("optuna") is None:
        hint = 'run: pip install "curvlab[sweep]"; the searches "grid" and "halton" need nothing'
        if kind == "sampler":  # once
            faults.append(Fault("Optuna is not installed", "sweep.search", hint=hint))
        return default
    if node is None:
        return default
    table = node.as_table()
    if table.use is None:
        faults.append(node.fault(f"expected the name of a {kind} of Optuna, got {describe(plain(node))}"))
        return default
    found = Named(kind, table.use, plain(table.without("use")))
    if table.use not in classes(kind):
        known = advice(table.use, sorted(classes(kind)), f"{kind.capitalize()}s of Optuna")
        faults.append(table.table["use"].fault(f"unknown {kind} {table.use}", known))
        return default
    try:
        found.build()
    except Exception as error:  # whatever the class raises for its arguments
        faults.append(node.fault(f"{table.use} cannot be made: {raised(error)}", "see Optuna's reference"))
    return found
