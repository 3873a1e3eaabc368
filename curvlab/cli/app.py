"""The command ``curvlab``: its subcommands, its global options, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from curvlab import __version__
from curvlab.cli import (
    beginning,
    benching,
    checking,
    comparing,
    configuration,
    exporting,
    listing,
    plotting,
    preparing,
    racing,
    run,
    scaffolding,
    sweeping,
)
from curvlab.cli.launching import rank
from curvlab.cli.output import complain, paths_as_they_are, print_text, release, reserve
from curvlab.cli.plugin_commands import add_plugin_commands
from curvlab.errors import ConfigError, CurvlabError, Diverged, Stopped, UsageError, raised
from curvlab.registry.loader import block, installed

#: what a shell calls a process that was interrupted
_INTERRUPTED = 130


#: errors that all processes of a run end with alike
AGREED = (ConfigError, Diverged, Stopped)


class Commands(TyperGroup):
    """A group that turns curvlab's errors into a message on stderr and an exit code.

    Any other exception is a bug, ours or a plugin's: its traceback is shown and the exit code is 1.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except CurvlabError as err:
            if not (rank() and isinstance(err, AGREED)):  # the first process says it for all
                complain(f"rank {rank()}: {words(err)}" if rank() else words(err))
            raise typer.Exit(err.exit_code) from err
        except KeyboardInterrupt as err:
            complain("interrupted")
            raise typer.Exit(_INTERRUPTED) from err
        except SystemExit as err:
            if ctx.invoked_subcommand in foreign:  # a command of a plugin ends as it likes
                raise
            complain(f"error: code of a part ended the command: {raised(err)}")
            raise typer.Exit(CurvlabError.exit_code) from err


#: names of the commands that plugins added
foreign: set[str] = set()

app = typer.Typer(
    name="curvlab",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print_text(f"curvlab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    plugins: Annotated[
        list[str] | None, typer.Option("-p", metavar="no:NAME", help="Block a plugin; may be repeated.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    """Second-order optimizers for PyTorch, composed from parts."""
    block(blocked(plugins or ()))


app.command("train")(run.train)
app.command("resume")(run.resume)
app.command("eval")(run.evaluate)
app.command("init")(beginning.init)
app.command("runs")(comparing.runs)
app.command("compare")(comparing.compare)
app.command("race")(racing.race)
app.command("sweep")(sweeping.sweep)
app.command("plot")(plotting.plot)
app.command("export")(exporting.export)
app.command("methods")(listing.methods)
app.command("parts")(listing.parts)
listing.tasks_app.command("prepare", **preparing.COMMAND)(preparing.prepare)
app.add_typer(listing.tasks_app, name="tasks")
app.add_typer(configuration.app, name="config")
listing.plugins_app.command("new")(scaffolding.new)
listing.plugins_app.command("check")(checking.check)
app.add_typer(listing.plugins_app, name="plugins")
app.add_typer(benching.app, name="bench")
app.command("env")(run.env)


def main() -> None:
    """The console script: as ``app``, with the commands that plugins add.

    While plugins are loaded, and to the end if a document was asked for, standard output is reserved for
    it: nothing that a plugin or a part prints reaches it.
    """
    arguments = sys.argv[1:]
    paths_as_they_are()
    reserve()
    _load_plugins(arguments)
    if not _asks_for_document(arguments):
        release()
    app(arguments)


def _asks_for_document(arguments: Sequence[str]) -> bool:
    """Whether one JSON document is all that a command of ours will print; a plugin's prints what it likes."""
    named = [word for word in arguments if not word.startswith(("-", "no:"))]
    if named and named[0] in foreign:
        return False
    return "--json" in arguments or named[-2:] == ["config", "schema"]


def _load_plugins(arguments: Sequence[str]) -> None:
    """Load what is installed, and add the commands that plugins bring."""
    try:
        block(blocked(_early_options(arguments)))
        foreign.update(add_plugin_commands(app, installed()))
    except CurvlabError as err:
        complain(words(err))
        raise SystemExit(err.exit_code) from err
    except KeyboardInterrupt as err:  # a plugin that takes for ever is named
        complain(" ".join(["interrupted", *map(str, err.args)]))
        raise SystemExit(_INTERRUPTED) from err


def words(err: CurvlabError) -> str:
    """An error as it is shown: faults stand for themselves, with their count if they are several."""
    if isinstance(err, ConfigError):
        count = f"{len(err.faults)} faults in the configuration\n" if len(err.faults) > 1 else ""
        return f"{count}{err}"
    return f"error: {err}"


def blocked(values: Sequence[str]) -> tuple[str, ...]:
    """The plugins that ``-p no:NAME`` names; raises ``UsageError`` for anything else after ``-p``."""
    for value in values:
        if not value.startswith("no:") or value == "no:":
            raise UsageError(f"-p {value}: expected no:NAME, which blocks the plugin NAME")
    return tuple(value.removeprefix("no:") for value in values)


def _early_options(arguments: Sequence[str]) -> list[str]:
    """The values of ``-p`` before the command's name: needed before plugins can add commands."""
    found, rest = [], list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "-p" and rest:
            found.append(rest.pop(0))
        elif option.startswith("-p") and len(option) > 2:
            found.append(option[2:])
    return found
