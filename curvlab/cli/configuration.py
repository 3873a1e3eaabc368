"""Looking at configurations without running them: ``config check``, ``config show``, ``config schema``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from curvlab.cli.output import print_json, print_text

Configs = Annotated[
    list[Path], typer.Argument(help="TOML files; later files override earlier ones.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one value: TOML, else a string.")
]

app = typer.Typer(no_args_is_help=True, help="Check and show configurations.", rich_markup_mode=None)


@app.command()
def check(configs: Configs, overrides: Overrides = None) -> None:
    """Build everything that a run needs, and list all faults at once."""
    from curvlab.config import build, load

    plan = build(load(configs, overrides or ()))
    task = plan.resolved["task"]["use"]
    print_text(f"{', '.join(str(path) for path in configs)}: in order, {plan.method_name} on {task}")


@app.command()
def show(configs: Configs, overrides: Overrides = None) -> None:
    """Show the resolved configuration as TOML: every value and its origin."""
    from curvlab.config import load, resolve
    from curvlab.config.toml_text import annotated

    print_text(annotated(resolve(load(configs, overrides or ())).tree).rstrip())


@app.command()
def schema() -> None:
    """Print the JSON Schema of a configuration, for editors, built from the installed parts."""
    from curvlab.config.json_schema import json_schema
    from curvlab.registry import installed

    print_json(json_schema(installed()))
