"""Groups of parameters: which names each holds, and what it sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from curvlab.engine.live import WELL_KNOWN, live
from curvlab.engine.method import Method
from curvlab.errors import ConfigError, Fault


@dataclass(frozen=True)
class Group:
    """Names of parameters in the model's order, and the live keys that differ for them."""

    names: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def resolve(
    model: nn.Module, groups: Sequence[Mapping[str, Any]], method: Method | None = None
) -> list[Group]:
    """The groups by the names of their parameters, each parameter in exactly one.

    ``groups[i]["params"]`` is a shell pattern of names (``*.bias``), parameters of the model, pairs of
    ``named_parameters()``, or several of these; every other key is a live one, of ``method`` if that is
    given.  Parameters that no group names form the first group, without settings; there is none if
    every parameter is named.  Frozen parameters are included, and a tied parameter goes by its first
    name.  Raises ``ConfigError`` with every fault: a pattern without a match, a parameter in two
    groups or not of this model, an unknown key.
    """
    faults: list[Fault] = []
    known = {"lr", *WELL_KNOWN} if method is None else set(live(method))
    order = [name for name, _ in model.named_parameters()]
    names = _Names(model)
    holder: dict[str, int] = {}
    found: list[Group] = []
    for k, given in enumerate(_listed(groups)):
        faults += _unknown(given, known, k)
        mine: set[str] = set()
        for item in _items(given.get("params", ()), k):
            mine.update(names.of(item, k, faults))
        for name in sorted(mine & holder.keys(), key=order.index):
            what = f'parameter "{name}" is in two groups: groups[{holder[name]}] and groups[{k}]'
            faults.append(Fault(what, path=_at(k), hint="remove it from one of them"))
        holder.update(dict.fromkeys(mine, k))
        settings = {key: value for key, value in given.items() if key != "params"}
        found.append(Group(tuple(name for name in order if name in mine), settings))
    if faults:
        raise ConfigError(*faults)
    rest = tuple(name for name in order if name not in holder)
    return [Group(rest), *found] if rest or not found else found


class _Names:
    """A model's parameters by every name and by identity."""

    def __init__(self, model: nn.Module) -> None:
        self._first = {id(p): name for name, p in model.named_parameters()}
        every = model.named_parameters(remove_duplicate=False)
        self._every = {name: self._first[id(p)] for name, p in every}

    def of(self, item: Any, k: int, faults: list[Fault]) -> list[str]:
        """The names that one entry of ``params`` means."""
        if isinstance(item, str):
            matches = [first for name, first in self._every.items() if fnmatchcase(name, item)]
            if not matches:
                what = f'no parameter of the model matches "{item}"'
                hint = f"Parameters of this model are, for example, {', '.join(list(self._every)[:3])}."
                faults.append(Fault(what, path=_at(k), hint=hint))
            return matches
        name, p = item if isinstance(item, tuple) and len(item) == 2 else ("", item)
        if isinstance(p, Tensor) and id(p) in self._first:
            return [self._first[id(p)]]
        if isinstance(p, Tensor):
            which = f'parameter "{name}"' if name else f"a tensor of shape {list(p.shape)}"
            faults.append(
                Fault(
                    f"{which} is not a parameter of the model",
                    path=_at(k),
                    hint="pass parameters of this model, or patterns that match their names",
                )
            )
        else:
            what = (
                f"params holds {p!r} of type {type(p).__name__}; expected a parameter or a pattern of names"
            )
            faults.append(
                Fault(what, path=_at(k), hint='write "params": "*.bias", or parameters of the model')
            )
        return []


def _listed(groups: Any) -> Sequence[Mapping[str, Any]]:
    """The groups, if they are mappings in a sequence."""
    listed = None if isinstance(groups, (str, Mapping, Tensor)) else list(groups)
    if listed is None or not all(isinstance(group, Mapping) for group in listed):
        what = "groups must be a list of dictionaries, each with the key params"
        raise ConfigError(
            Fault(what, path="groups", hint='groups=[{"params": "*.bias", "weight_decay": 0.0}]')
        )
    return listed


def _items(params: Any, k: int) -> Iterator[Any]:
    """The entries of ``params``: one, or several."""
    if isinstance(params, (str, Tensor)):
        yield params
    elif isinstance(params, Iterable):
        yield from params
    else:
        what = f"params = {params!r}; expected parameters or patterns of names"
        raise ConfigError(Fault(what, path=_at(k)))


def _unknown(given: Mapping[str, Any], known: set[str], k: int) -> list[Fault]:
    """Keys that no group has here, and missing ``params``."""
    hint = f"Keys are params, {', '.join(sorted(known))}."
    faults = [
        Fault(f"{key} is not a setting of this method's parameter groups", path=_at(k), hint=hint)
        for key in given
        if key != "params" and key not in known
    ]
    if "params" not in given:
        faults.append(Fault("params is missing", path=_at(k), hint=hint))
    return faults


def _at(k: int) -> str:
    return f"groups[{k}]"
