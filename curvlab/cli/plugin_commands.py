"""Commands that plugins add; a hook that raises takes only its own plugin's commands with it."""

from __future__ import annotations

from typing import Any

import typer
from typer.models import CommandInfo, TyperInfo

from curvlab.cli.output import complain
from curvlab.registry import Registry
from curvlab.registry.loader import implementations


def add_plugin_commands(app: typer.Typer, registry: Registry) -> None:
    """Call ``curvlab_cli`` of every plugin with an empty app, and take over what it adds.

    A name that is taken stays with the one who has it; the plugin is named on stderr.
    """
    for plugin, call in implementations(registry.manager, "curvlab_cli"):
        own = typer.Typer()
        try:
            call(app=own)
        except Exception as err:  # a plugin may raise anything
            complain(
                f'plugin "{plugin}": curvlab_cli raised {type(err).__name__}: {err}; its commands are missing'
            )
            continue
        for command in own.registered_commands:
            if not _taken(app, plugin, command):
                app.registered_commands.append(command)
        for group in own.registered_groups:
            if not _taken(app, plugin, group):
                app.registered_groups.append(group)


def _taken(app: typer.Typer, plugin: str, info: CommandInfo | TyperInfo) -> bool:
    name = _name(info)
    there = {*map(_name, app.registered_commands), *map(_name, app.registered_groups)}
    if name not in there:
        return False
    complain(f'plugin "{plugin}": the command "{name}" exists already; its own is left out')
    return True


def _name(info: CommandInfo | TyperInfo) -> str:
    """A command's or group's name as Typer will call it."""
    callback: Any = info.callback
    return str(info.name or callback.__name__.lower().replace("_", "-"))
