"""What is installed: ``methods``, ``parts``, ``tasks``, ``plugins list``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from curvlab.cli.options import AsJson
from curvlab.cli.output import complain, fitted, print_json, print_table, print_text
from curvlab.errors import PluginError, UsageError
from curvlab.registry import MethodEntry, PartEntry, PluginRecord, Registry, installed
from curvlab.registry.kinds import PROTOCOLS
from curvlab.registry.suggest import advice

tasks_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
plugins_app = typer.Typer(no_args_is_help=True, help="List, check and write plugins.", rich_markup_mode=None)


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show everything about this method.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods; with a NAME, show its composition as TOML, its knobs, needs and reference."""
    registry = installed()
    if name is not None:
        _one_method(registry.method(name), as_json)
        return
    rows = [_method_row(registry, entry) for entry in registry.method_entries()]
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("method", "distribution", "what it is"),
            [(r["use"], f"{r['distribution']} {r['version']}", r["summary"] or r["error"]) for r in rows],
        )
    _complain_of_plugins(registry)


def parts(
    kind: Annotated[str | None, typer.Argument(help="List only this kind.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List every registered part: kind, name, distribution, version, summary."""
    registry = installed()
    if kind is not None and kind not in PROTOCOLS:
        raise UsageError(f'unknown kind "{kind}"\n  {advice(kind, PROTOCOLS, "Kinds")}')
    found = list(registry.parts(kind))
    if as_json:
        print_json(
            [{**_part_row(registry, e), "factory": e.factory, "preset": dict(e.preset)} for e in found]
        )
    else:
        print_table(
            ("kind", "name", "distribution", "version", "what it is"),
            [(e.kind, registry.use(e), e.distribution, e.version, e.summary) for e in found],
        )
    _complain_of_plugins(registry)


@tasks_app.callback()
def tasks(context: typer.Context, as_json: AsJson = False) -> None:
    """List the tasks and the source of their data; `prepare` makes data for those that need it."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise UsageError(
                f"`curvlab tasks {context.invoked_subcommand}` has no option --json; only `curvlab tasks` has"
            )
        return
    registry = installed()
    found = list(registry.parts("task"))
    if as_json:
        print_json([{**_part_row(registry, entry), "source": entry.source} for entry in found])
    else:
        print_table(("task", "data", "what it is"), [(registry.use(e), e.source, e.summary) for e in found])
    _complain_of_plugins(registry)


@plugins_app.command("list")
def list_plugins(as_json: AsJson = False) -> None:
    """List the installed plugins, and why some are broken, clashing or slow."""
    records = installed().plugins
    if as_json:
        print_json([asdict(record) for record in records])
    else:
        print_table(
            ("plugin", "distribution", "version", "api", "status", "parts", "trouble"),
            [
                (r.name, r.distribution, r.version, r.api_version, r.status, str(len(r.parts)), _trouble(r))
                for r in records
            ],
        )


def _one_method(entry: MethodEntry, as_json: bool) -> None:
    from curvlab.config.knobs import read_method
    from curvlab.config.tree import plain

    file = read_method(entry)
    knobs = {
        knob.name: {"sets": list(knob.written()), "default": file.default(knob), "help": knob.help}
        for knob in file.knobs.values()
    }
    row = {"name": entry.name, **_provenance(entry), "summary": entry.summary}
    words = {"needs": entry.needs, "reference": entry.reference}
    if as_json:
        print_json({**row, **words, "knobs": knobs, "method": plain(file.composition)})
        return
    import tomli_w

    lines = [fitted(f"# {entry.name} ({entry.origin}): {entry.summary}", "#   ")]
    lines += [fitted(f"# {key}: {text}", "#   ") for key, text in words.items() if text]
    width = max((len(knob) for knob in knobs), default=0)
    lines += ["#", "# knobs:"] if knobs else []
    for knob, facts in knobs.items():
        default = "" if facts["default"] is None else f" (default {facts['default']})"
        note = f": {facts['help']}" if facts["help"] else ""
        line = f"#   {knob:<{width}}  sets {', '.join(facts['sets'])}{default}{note}"
        lines.append(fitted(line, "#   " + " " * (width + 2)))
    print_text("\n".join(lines) + "\n\n" + tomli_w.dumps({"method": plain(file.composition)}).rstrip())


def _method_row(registry: Registry, entry: MethodEntry) -> dict[str, Any]:
    """A method's line; a file that cannot be read takes nothing but its own summary with it."""
    row = {"name": entry.name, "use": registry.use(entry), **_provenance(entry)}
    try:
        return {**row, "summary": entry.summary, "reference": entry.reference, "error": ""}
    except PluginError as err:
        return {**row, "summary": "", "reference": "", "error": str(err)}


def _part_row(registry: Registry, entry: PartEntry) -> dict[str, Any]:
    row = {"kind": entry.kind, "name": entry.name, "use": registry.use(entry), **_provenance(entry)}
    return {**row, "summary": entry.summary}


def _provenance(entry: PartEntry | MethodEntry) -> dict[str, str]:
    return {"distribution": entry.distribution, "version": entry.version}


def _complain_of_plugins(registry: Registry) -> None:
    for record in registry.plugins:
        if record.status in ("broken", "incompatible"):
            who = f'plugin "{record.name}" ({record.distribution} {record.version})'
            complain(f"{who} is {record.status}: {record.reason}")
        if record.slow:
            complain(f'plugin "{record.name}" ({record.distribution} {record.version}) is {record.slow}')


def _trouble(record: PluginRecord) -> str:
    """What is wrong with a plugin, in one line."""
    return "; ".join(word for word in (record.reason, record.slow) if word)
