"""Prints what a job of a workflow runs, as one shell script: its steps in subshells, with their environment.

    python .ci/commands.py tests wheels torch=2.6.0 | bash -e

Values after the job's name fill its matrix; without them every first value is taken.  Expressions of GitHub
alone (``github.…``) are taken from variables of the environment: ``github.base_ref`` is ``$GITHUB_BASE_REF``.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

WORKFLOWS = Path(__file__).resolve().parents[1] / ".github" / "workflows"
EXPRESSION = re.compile(r"\$\{\{\s*([\w.]+)\s*\}\}")


def workflow(name: str) -> dict[str, Any]:
    """A workflow's document."""
    found: dict[str, Any] = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text(encoding="utf-8"))
    return found


def script(document: Mapping[str, Any], job: str, given: Mapping[str, str]) -> str:
    """The commands of a job; raises ``KeyError`` for an unknown job or an expression without a value."""
    about = document["jobs"][job]
    matrix = {name: str(values[0]) for name, values in about.get("strategy", {}).get("matrix", {}).items()}
    unknown = set(given) - set(matrix)
    if unknown:
        raise KeyError(f"{job} has no {', '.join(sorted(unknown))} in its matrix")
    values = {f"matrix.{name}": value for name, value in {**matrix, **given}.items()}
    return "\n".join(_steps(document, about, values)) + "\n"


def _steps(document: Mapping[str, Any], about: Mapping[str, Any], values: Mapping[str, str]) -> Iterator[str]:
    for step in about["steps"]:
        if "run" not in step:
            continue
        env = {**document.get("env", {}), **about.get("env", {}), **step.get("env", {})}
        exports = [f"export {name}={_filled(str(value), values, quoted=True)}" for name, value in env.items()]
        yield "\n".join(["(", "set -eo pipefail", *exports, _filled(step["run"], values).strip(), ")"])


def _filled(text: str, values: Mapping[str, str], quoted: bool = False) -> str:
    """Every expression replaced; as a word of the shell if ``quoted``."""
    parts = EXPRESSION.split(text)
    fixed = [shlex.quote(part) if quoted and part else part for part in parts[::2]]
    found = [_value(name, values) for name in parts[1::2]]
    return "".join(a + b for a, b in zip(fixed, [*found, ""], strict=True)) or "''"


def _value(name: str, values: Mapping[str, str]) -> str:
    if name.startswith("github."):
        return f'"${{{name.replace(".", "_").upper()}:?}}"'
    return values[name]


def main(arguments: list[str]) -> None:
    """Print a job's script."""
    if len(arguments) < 2:
        sys.exit(__doc__)
    name, job, *rest = arguments
    print(script(workflow(name), job, dict(word.split("=", 1) for word in rest)), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
