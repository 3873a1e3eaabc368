"""Finds plugins and loads each on its own: a broken one is recorded and harms nothing else.

pluggy's own loader stops at the first broken plugin, skips a duplicate name without a word and lets
one raising hook abort the call for all; so entry points are read, imported and registered here.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from typing import Any

import pluggy

from curvlab.errors import PluginError, UsageError, raised
from curvlab.registry import hookspecs
from curvlab.registry.identity import API_VERSION, PROJECT
from curvlab.registry.isolation import isolated
from curvlab.registry.records import PluginRecord, Status
from curvlab.registry.registry import Registry
from curvlab.registry.suggest import advice

#: the core's own plugin: its record's name, and its module, imported by name because it stands above
CORE = "core"
CORE_MODULE = "curvlab.default_plugin"

#: libraries that take long to import; a plugin that needs one imports it in its parts' modules
HEAVY = ("torch", "numpy", "scipy", "sklearn", "pandas", "jax", "tensorflow")


@dataclass(frozen=True)
class Candidate:
    """A plugin before it is loaded."""

    name: str
    distribution: str
    version: str
    load: Callable[[], Any]

    def matches(self, word: str) -> bool:
        """Whether ``word`` names this plugin: by name, distribution, or ``distribution:name``."""
        return word in (self.name, self.distribution, f"{self.distribution}:{self.name}")


def installed() -> Registry:
    """The registry of this environment, loaded once.

    ``CURVLAB_DISABLE_PLUGINS=a,b`` blocks plugins by name; ``CURVLAB_PLUGINS=a,b`` is an allow-list
    (set but empty: core alone); ``CURVLAB_STRICT=1`` makes any unusable plugin a ``PluginError``.
    """
    allow = os.environ.get("CURVLAB_PLUGINS")
    return _installed(
        _words(os.environ.get("CURVLAB_DISABLE_PLUGINS", "")),
        None if allow is None else _words(allow),
        os.environ.get("CURVLAB_STRICT", "0") not in ("", "0"),
    )


@lru_cache(maxsize=4)
def _installed(disable: tuple[str, ...], allow: tuple[str, ...] | None, strict: bool) -> Registry:
    return discover(disable=disable, allow=allow, strict=strict)


def block(words: Collection[str]) -> None:
    """Block plugins for the rest of this process and its children: what ``-p no:NAME`` does."""
    known = [CORE, *(c.name for c in candidates())]
    for word in words:
        if word == CORE:
            raise UsageError("-p no:core: the core cannot be blocked; name a plugin")
        if not any(c.matches(word) for c in candidates()):
            raise UsageError(
                f"-p no:{word}: no plugin of this name is installed. {advice(word, known, 'Installed')}"
            )
    before = _words(os.environ.get("CURVLAB_DISABLE_PLUGINS", ""))
    os.environ["CURVLAB_DISABLE_PLUGINS"] = ",".join(dict.fromkeys([*before, *words]))


def candidates() -> list[Candidate]:
    """Every installed entry point of the group ``curvlab``; nothing is imported."""
    try:
        found = [_candidate(point) for point in metadata.entry_points(group=PROJECT)]
    except Exception:  # one distribution's entry_points.txt cannot be read
        found = list(_one_by_one())
    return sorted(found, key=lambda c: (c.name, c.distribution))


def _candidate(point: metadata.EntryPoint) -> Candidate:
    name, version = _described(point.dist)
    return Candidate(point.name, name, version, point.load)


def _described(origin: metadata.Distribution | None) -> tuple[str, str]:
    """Name and version; a distribution whose metadata cannot be read is called by its folder."""
    try:
        about: Any = {} if origin is None else origin.metadata
        return str(about["Name"] or "unknown"), str(about["Version"] or "?")
    except Exception:
        folder = getattr(origin, "_path", None)  # there is no public name for it
        return str(getattr(folder, "name", "unknown")).partition("-")[0], "?"


def _one_by_one() -> Iterator[Candidate]:
    """The entry points of every distribution that can be read, and a broken plugin for each that cannot."""
    seen = set()
    for origin in metadata.distributions():
        name, version = _described(origin)
        if name in seen:  # the first on the path is the one that is imported
            continue
        seen.add(name)
        try:
            yield from (_candidate(p) for p in origin.entry_points if p.group == PROJECT)
        except Exception as err:
            yield Candidate(
                name, name, version, _raiser(f"its entry_points.txt cannot be read: {raised(err)}")
            )


def _raiser(message: str) -> Callable[[], Any]:
    def load() -> Any:
        raise PluginError(message)

    return load


def discover(
    *,
    disable: Collection[str] = (),
    allow: Collection[str] | None = None,
    strict: bool = False,
    plugins: Iterable[Candidate] | None = None,
) -> Registry:
    """Core first, then every plugin (those installed, if not given), each on its own.

    Raises only under ``strict``, and then one ``PluginError`` that lists every unusable plugin.
    """
    registry = Registry()
    registry.manager.add_hookspecs(hookspecs)
    from curvlab import __version__

    _load(registry, Candidate(CORE, PROJECT, __version__, lambda: importlib.import_module(CORE_MODULE)), CORE)
    found = candidates() if plugins is None else list(plugins)
    twice = {name for name, n in Counter([CORE, *(c.name for c in found)]).items() if n > 1}
    for candidate in found:
        why = _blocked(candidate, disable, allow)
        if why:
            registry.plugins.append(_record(candidate, "blocked", why))
        else:
            key = f"{candidate.distribution}:{candidate.name}" if candidate.name in twice else candidate.name
            _load(registry, candidate, key)
    _mark_clashes(registry, twice)
    if strict:
        _refuse_unusable(registry)
    return registry


def _blocked(candidate: Candidate, disable: Collection[str], allow: Collection[str] | None) -> str:
    if any(candidate.matches(word) for word in disable):
        return "blocked by -p no:NAME or CURVLAB_DISABLE_PLUGINS"
    if allow is not None and not any(candidate.matches(word) for word in allow):
        return "not in the allow-list CURVLAB_PLUGINS"
    return ""


def _load(registry: Registry, candidate: Candidate, key: str) -> None:
    """Import one plugin, register its hooks and let it add its parts; records how that went."""
    own = Registry(candidate.distribution, candidate.version)
    api, hooks = "", tuple[str, ...]()
    before, started = set(sys.modules), time.perf_counter()

    def record(status: Status, error: str = "", **more: Any) -> PluginRecord:
        heavy = tuple(name for name in HEAVY if name in sys.modules and name not in before)
        cost: dict[str, Any] = {"seconds": time.perf_counter() - started, "heavy": heavy}
        return _record(candidate, status, error, api_version=api, parts=own.keys(), **cost, **more)

    try:
        with isolated():
            module = candidate.load()
            api = str(getattr(module, "api_version", ""))
            wrong = _incompatible(api, getattr(module, "__name__", type(module).__name__))
            if wrong:
                registry.plugins.append(record("incompatible", wrong))
                return
            hooks = _register(registry.manager, module, key)
            for _, call in implementations(registry.manager, "curvlab_register", key):
                call(registry=own)
            registry.absorb(own)
    except KeyboardInterrupt as err:
        leave_out = f"use `-p no:{candidate.name}` to skip it"
        raise KeyboardInterrupt(f'while plugin "{candidate.name}" was loaded; {leave_out}') from err
    except BaseException as err:  # a plugin may raise anything, sys.exit and GeneratorExit included
        if registry.manager.has_plugin(key):
            registry.manager.unregister(name=key)
        registry.plugins.append(record("broken", traceback.format_exc(), cause=raised(err)))
    else:
        registry.plugins.append(record("ok", hooks=hooks))


def _register(manager: pluggy.PluginManager, module: Any, key: str) -> tuple[str, ...]:
    """Register a plugin's hooks; raises for a wrong signature, an unknown hook and a wrapper."""
    manager.register(module, name=key)
    callers = manager.get_hookcallers(module) or []
    known = [name for name in vars(hookspecs) if name.startswith(PROJECT + "_")]
    for caller in callers:
        if not caller.has_spec():
            raise PluginError(f'unknown hook "{caller.name}". {advice(caller.name, known, "Hooks")}')
        if any(i.plugin_name == key and (i.wrapper or i.hookwrapper) for i in caller.get_hookimpls()):
            raise PluginError(
                f'hook "{caller.name}" is a wrapper, which curvlab does not support; remove wrapper=True'
            )
    return tuple(sorted(caller.name for caller in callers))


def implementations(
    manager: pluggy.PluginManager, hook: str, key: str | None = None
) -> list[tuple[str, Callable[..., Any]]]:
    """Plugin and implementation of a hook, of one plugin or of all; each is called with keywords."""

    def bind(implementation: pluggy.HookImpl) -> Callable[..., Any]:
        return lambda **given: implementation.function(*(given[name] for name in implementation.argnames))

    found = reversed(getattr(manager.hook, hook).get_hookimpls())
    return [(i.plugin_name, bind(i)) for i in found if key in (None, i.plugin_name)]


def _incompatible(api: str, module: str) -> str:
    """Why a plugin of this API version cannot be used, or nothing; its entry point names ``module``."""
    core = f"this curvlab provides API {API_VERSION}"
    if not api:
        return f'{module} does not set api_version; {core}: write api_version = "{API_VERSION}" at its top'
    try:
        major, minor = (int(word) for word in api.split("."))
    except ValueError:
        return f'{module}: expected api_version = "major.minor", got "{api}"; {core}'
    ours = [int(word) for word in API_VERSION.split(".")]
    if major != ours[0]:
        return f"{module} needs API {api}, {core}: the major versions differ; install another release of one"
    return f"{module} needs API {api}, {core}: update curvlab" if minor > ours[1] else ""


def _mark_clashes(registry: Registry, twice: Collection[str]) -> None:
    """Say on each record which of its names others use too; core is never the one to blame."""
    clashes = registry.clashes()
    for i, record in enumerate(registry.plugins):
        if record.status != "ok" or record.name == CORE:
            continue
        lines = []
        if record.name in twice:
            others = [r.distribution for r in registry.plugins if r.name == record.name and r is not record]
            lines.append(f'plugin name "{record.name}" is also used by {", ".join(others)}')
        for (kind, name), owners in clashes.items():
            if record.distribution in owners and f"{kind}/{name}" in record.parts:
                others = [owner for owner in owners if owner != record.distribution]
                lines.append(f'{kind} "{name}" is also registered by {", ".join(others)}')
        if lines:
            registry.plugins[i] = replace(record, status="clash", error="; ".join(lines))


def _refuse_unusable(registry: Registry) -> None:
    bad = [r for r in registry.plugins if r.status not in ("ok", "blocked")]
    if bad:
        lines = [f'  plugin "{r.name}" ({r.distribution} {r.version}) is {r.status}: {r.reason}' for r in bad]
        raise PluginError("\n".join(["CURVLAB_STRICT is set, and these plugins are not usable:", *lines]))


def _record(candidate: Candidate, status: Status, error: str = "", **more: Any) -> PluginRecord:
    return PluginRecord(candidate.name, candidate.distribution, candidate.version, status, error, **more)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
