"""Options that several commands have, each with one text."""

from __future__ import annotations

from typing import Annotated

import typer

#: no machine has more cores
MOST_PROCESSES = 1024

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="a.b=c", help="Override a setting; a TOML value, else a string. Repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        metavar="N",
        min=1,
        max=MOST_PROCESSES,
        help="Runs at a time. [default: executor.jobs, else 1]",
        show_default=False,
    ),
]
