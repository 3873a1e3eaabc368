"""From layers to a ``Plan``: every part built, every fault found, every value spelled out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curvlab.config.builder import Builder
from curvlab.config.construction import Built
from curvlab.config.layer_readers import layer_readers
from curvlab.config.layers import Layers
from curvlab.config.merge import merge, put
from curvlab.config.run_table import budget_faults, run_faults
from curvlab.config.tree import DEFAULT, Node, Origin, dotted, node_of, plain
from curvlab.engine.method import Method
from curvlab.engine.plan import Plan, RunSettings
from curvlab.errors import Fault
from curvlab.protocols.average import Average
from curvlab.protocols.backend import Backend
from curvlab.protocols.callback import Callback
from curvlab.protocols.report import Reporter
from curvlab.protocols.sampler import Sampler
from curvlab.protocols.task import Task
from curvlab.registry.lifecycle import run_listeners
from curvlab.registry.loader import installed
from curvlab.registry.registry import Registry
from curvlab.registry.suggest import advice

#: the tables of a configuration, in the order in which they are shown
TABLES = ("run", "task", "method", "sampler", "precision", "average", "callbacks", "report")

#: tables of files that are not the configuration of one run, and the command that reads them
_OF_COMMANDS: Mapping[str, str] = {
    "sweep": "`curvlab sweep`",
    "race": "`curvlab race`",
    "executor": "`curvlab sweep` or `curvlab race`",
}

#: table -> protocol of the part that it describes, or of the parts that it names
_PARTS: Mapping[str, Any] = {
    "task": Task,
    "method": Method,
    "sampler": Sampler,
    "precision": Backend,
    "average": Average,
    "callbacks": Mapping[str, Callback[Any]],
    "report": Reporter | tuple[Reporter, ...],
}


@dataclass(frozen=True)
class Resolved:
    """A plan, and the tree that makes it again: every value spelled out, with its origin."""

    plan: Plan
    tree: Node


def build(layers: Layers, registry: Registry | None = None) -> Plan:
    """The plan of a configuration; raises ``ConfigError`` with every fault, or ``PluginError``."""
    return resolve(layers, registry).plan


def resolve(layers: Layers, registry: Registry | None = None) -> Resolved:
    """The plan and its resolved tree; raises like ``build``."""
    registry = installed() if registry is None else registry
    builder, tree = Builder(registry), layers.tree
    _check_tables(tree, builder.faults.user)
    made: dict[str, Built] = {}
    run = _run(tree, builder)
    if run is not None:
        made["run"] = run
    for name in ("task", "method", "precision", "average", "callbacks", "report"):
        if name in tree.table:
            part = builder.value(tree.table[name], _PARTS[name], name)
            if part is not None:
                made[name] = part
    sampler = _sampler(tree, builder, made.get("method"))
    if sampler is not None:
        made["sampler"] = sampler
    builder.faults.raise_all()
    resolved = Node({name: made[name].node for name in TABLES if name in made}, tree.origin)
    return Resolved(_plan(made, resolved, layers.given, builder), resolved)


def build_method(
    registry: Registry, name: str, knobs: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> Method:
    """A method from its name, its knobs, and values at dotted paths (``preconditioner.inverse``).

    A knob that is ``None`` keeps its default.  Raises like ``build``.
    """
    builder = Builder(registry)
    node = _from_python({**knobs, "use": name}, ())
    for path, value in (settings or {}).items():
        keys = tuple(path.split("."))
        node = put(node, keys, _from_python(value, (path,)), builder.faults.user) or node
    built = builder.method(node, "")
    builder.faults.raise_all()
    assert built is not None, "a method that was not built left no fault"
    method: Method = built.value
    return method


def build_part(
    registry: Registry, protocol: type, use: str, settings: Mapping[str, Any] | None = None
) -> Any:
    """One part of a protocol, by name, with settings; raises like ``build``."""
    builder = Builder(registry)
    built = builder.part(_from_python({**(settings or {}), "use": use}, ()), protocol, "")
    builder.faults.raise_all()
    assert built is not None, "a part that was not built left no fault"
    return built.value


def _from_python(data: Any, at: tuple[str, ...]) -> Node:
    return node_of(data, lambda path: Origin("python", dotted((*at, *path)), rank=0))


def _check_tables(tree: Node, faults: list[Fault]) -> None:
    for key, node in tree.table.items():
        if key not in TABLES:
            hint = f"{_OF_COMMANDS[key]} reads it" if key in _OF_COMMANDS else advice(key, TABLES, "Tables")
            faults.append(node.fault(f"unknown table {key}", hint, key))
    if "task" not in tree.table:
        example = '[task] use = "digits"'
        faults.append(
            tree.fault("table [task] is missing", f"add {example}; `curvlab tasks` lists the tasks", "task")
        )
    if "method" not in tree.table:
        example = '[method] use = "kfac"'
        faults.append(
            tree.fault(
                "table [method] is missing", f"add {example}; `curvlab methods` lists the methods", "method"
            )
        )


def _run(tree: Node, builder: Builder) -> Built | None:
    table = tree.table.get("run", Node({}, tree.origin))
    built = builder.record(table, RunSettings, "run")
    if table.is_table:
        builder.faults.user += budget_faults(table, whole=built is not None)
    if built is not None:
        builder.faults.user += run_faults(table, built.value)
    return built


def _sampler(tree: Node, builder: Builder, method: Built | None) -> Built | None:
    """``[sampler]`` over the method's own sampler over ``uniform``."""
    given = tree.table.get("sampler")
    own = None
    if method is not None and method.value.sampler is not None:
        if given is None:
            return Built(method.value.sampler, method.node.table["sampler"])
        own = method.node.table["sampler"]
    elif given is None and "method" in tree.table and method is None:
        return None  # the method has faults, and whether it brings a sampler is unknown
    base = own or Node({"use": Node("uniform", DEFAULT)}, DEFAULT)
    node = base if given is None else merge(base, given, builder.faults.user, anew=True)
    return builder.value(node, Sampler, "sampler")


def _plan(made: Mapping[str, Built], resolved: Node, given: str, builder: Builder) -> Plan:
    use = made["method"].node.table.get("use")
    report = made["report"].value
    reporters: tuple[Reporter, ...] = report if isinstance(report, tuple) else (report,)
    return Plan(
        run=made["run"].value,
        task=made["task"].value,
        method=made["method"].value,
        method_name="composition" if use is None else str(use.value),
        sampler=made["sampler"].value,
        backend=made["precision"].value,
        readers=layer_readers(builder.registry),
        callbacks=made["callbacks"].value if "callbacks" in made else {},
        average=made["average"].value if "average" in made else None,
        reporters=(*reporters, *run_listeners(builder.registry)),
        resolved=plain(resolved),
        given=given,
        provenance=dict(sorted(builder.provenance.items())),
    )
