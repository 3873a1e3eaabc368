"""Commands that plugins add; a hook that raises takes only its own plugin's commands with it."""

from __future__ import annotations

from typing import Any

import typer
from typer.main import get_group
from typer.models import CommandInfo, TyperInfo

from curvlab.cli.output import complain
from curvlab.errors import raised
from curvlab.registry import Registry
from curvlab.registry.isolation import isolated
from curvlab.registry.loader import implementations


def add_plugin_commands(app: typer.Typer, registry: Registry) -> set[str]:
    """Call ``curvlab_cli`` of every plugin with an empty app, take over what it adds, and return the names.

    A name that is taken stays with the one who has it; the plugin is named on stderr.  So is one whose
    hook raises, or whose commands Typer cannot read.
    """
    added: set[str] = set()
    ours: set[str] = set()
    for plugin, call in implementations(registry.manager, "curvlab_cli"):
        own = typer.Typer()
        try:
            with isolated():
                call(app=own)
                # Typer reads the signatures here: one that it cannot read would later end every command
                everything: list[CommandInfo | TyperInfo] = [*own.registered_commands, *own.registered_groups]
                found = [(info, _names(info)) for info in everything]
        except KeyboardInterrupt:
            raise
        except BaseException as err:  # a plugin may raise anything, SystemExit included
            complain(f'plugin "{plugin}": curvlab_cli raised {raised(err)}; its commands are missing')
            continue
        ours = ours or set(get_group(app).commands)
        for info, names in found:
            taken = sorted(names & (ours | added))
            if taken:
                exists = f'the command "{taken[0]}" exists already; its own is left out'
                complain(f'plugin "{plugin}": {exists}')
                continue
            _registered(app, info).append(info)
            added |= names
    return added


def _names(info: CommandInfo | TyperInfo) -> set[str]:
    """What Typer will call a command, a group, or the commands of a group without a name."""
    alone = typer.Typer()
    _registered(alone, info).append(info)
    return set(get_group(alone).commands)


def _registered(app: typer.Typer, info: CommandInfo | TyperInfo) -> Any:
    return app.registered_commands if isinstance(info, CommandInfo) else app.registered_groups
