"""Mutated configurations through ``config check``, ``--set`` and ``train --dry-run``; prints the outcome.

    python -m tests.config.fuzz [--files 2000] [--sets 500] [--dry-runs 200] [--seed 0] [--schema]

No command may show a traceback or a record of ours, hang, print control characters or screens of text, or
leave with an exit status other than 0 (in order), 2 (usage) and 3 (configuration).  ``--schema`` compares
with the JSON Schema as well: a file that the schema accepts and ``check`` rejects is counted by its reason.
The exit status is 1 if anything went wrong.  Two thousand files take about two minutes of one core.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli
from typer.testing import CliRunner

from curvlab.cli.app import app
from curvlab.config.json_schema import json_schema
from curvlab.registry import Registry
from curvlab.registry.loader import installed
from tests.config.mutations import assignment, mutated, starts
from tests.config.schema_validator import accepts

#: exit statuses that a user's mistake may have, and that of a file in order
ALLOWED = (0, 2, 3)
SECONDS = 30
#: a message longer than this shows what nobody reads
LONGEST = 20_000

#: what no message shows: a record's or class's repr, an address, a control character
FORBIDDEN = re.compile(
    r"Traceback|\b[A-Z]\w*\([a-z_]+=|<class |<function|object at 0x|Node\(|Origin\(|mappingproxy"
    r"|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]"
)


class TooLong(BaseException):
    """A command did not answer."""


@contextmanager
def answered(seconds: int = SECONDS) -> Iterator[None]:
    """Raises ``TooLong`` inside after so many seconds."""

    def ring(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    text: str
    wrong: str  #: why it should not have said that; empty if it should


@dataclass
class Fuzz:
    """A seeded series of commands, in one process."""

    seed: int
    folder: Path
    registry: Registry = field(default_factory=installed)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.starts = starts(self.registry)
        kinds = sorted({entry.kind for entry in self.registry.parts()})
        self.names = {kind: sorted({e.name for e in self.registry.parts(kind)}) for kind in kinds}
        self.names["method"] = sorted(e.name for e in self.registry.method_entries())

    def chance(self, what: str, number: int) -> random.Random:
        """The source of one case's choices: cases do not depend on one another."""
        return random.Random(f"{self.seed} {what} {number}")

    def file(self, number: int) -> Path:
        """The mutated configuration of a number."""
        chance = self.chance("file", number)
        path = self.folder / f"{number}.toml"
        path.write_bytes(mutated(chance.choice(self.starts), chance, self.names))
        return path

    def check(self, number: int) -> Answer:
        return self.call(f"file {number}", "config", "check", str(self.file(number)))

    def dry_run(self, number: int) -> Answer:
        return self.call(f"dry-run {number}", "train", str(self.file(number)), "--dry-run")

    def set(self, number: int) -> Answer:
        """One or two ``--set`` on an example or on another valid file."""
        chance = self.chance("set", number)
        text = chance.choice(self.starts)
        path = self.folder / f"set-{number}.toml"
        path.write_text(text, encoding="utf-8")
        data = tomli.loads(text)
        given = [assignment(data, chance, self.names) for _ in range(chance.choice((1, 1, 2)))]
        options = [word for value in given for word in ("--set", value)]
        return self.call(f"set {number} {given!r:.300}", "config", "check", str(path), *options)

    def call(self, what: str, *arguments: str) -> Answer:
        """A command in this process, judged."""
        try:
            with answered():
                result = CliRunner().invoke(app, list(arguments))
        except TooLong:
            answer = Answer(-1, "", f"no answer within {SECONDS} s")
        else:
            answer = Answer(result.exit_code, result.output, _wrong(result))
        self.codes[f"{what.split()[0]}: exit {answer.code}"] += 1
        if answer.wrong:
            self.wrong.append(f"{what}: {answer.wrong}")
        return answer


def _wrong(result: Any) -> str:
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "".join(traceback.format_exception(result.exception)[-4:]).strip()[-1500:]
    if result.exit_code not in ALLOWED:
        return f"exit {result.exit_code}: {result.output[:500]}"
    if result.exit_code and not result.output.strip():
        return f"exit {result.exit_code} without a word"
    found = FORBIDDEN.search(result.output)
    if found:
        return f"shows {result.output[max(0, found.start() - 100) : found.end() + 100]!r}"
    return f"{len(result.output)} characters: {result.output[:300]!r}" if len(result.output) > LONGEST else ""


def beyond_schema(fuzz: Fuzz, answers: Sequence[Answer]) -> tuple[int, Counter[str], list[str]]:
    """How many files are TOML; why ``check`` alone rejects some; which the schema alone rejects."""
    schema = json_schema(fuzz.registry)
    parsed, reasons, unjust = 0, Counter[str](), []
    for number, answer in enumerate(answers):
        path = fuzz.folder / f"{number}.toml"
        try:
            fits = accepts(schema, tomli.loads(path.read_bytes().decode("utf-8-sig")), schema)
        except (ValueError, RecursionError):
            continue  # not TOML, which a schema does not see
        parsed += 1
        if answer.code and fits:
            reasons[_reason(answer.text)] += 1
        elif not answer.code and not fits:
            unjust.append(str(path))
    return parsed, reasons, unjust


def _reason(said: str) -> str:
    """The first fault without what belongs to the one file."""
    line = next((text for text in said.split("\n") if ".toml" in text), said.split("\n")[0])
    return re.sub(r"\S+\.toml(:\d+)*: ", "", line)[:150]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("files", 2000), ("sets", 500), ("dry-runs", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--schema", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for the files, which are deleted if not given")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        fuzz = Fuzz(given.seed, folder)
        answers = [fuzz.check(number) for number in range(given.files)]
        sound = [number for number, answer in enumerate(answers) if answer.code == 0]
        for number in range(given.sets):
            fuzz.set(number)
        # those that pass the check come further in a dry run
        for number in (*sound, *range(given.files))[: given.dry_runs]:
            fuzz.dry_run(number)
        print("\n".join(f"{name}  {count}" for name, count in sorted(fuzz.codes.items())))
        if given.schema:
            parsed, reasons, unjust = beyond_schema(fuzz, answers)
            print(f"accepted by the schema, rejected by check: {reasons.total()} of {parsed} TOML files")
            print("\n".join(f"  {count}  {reason}" for reason, count in reasons.most_common()))
            print(f"rejected by the schema, in order for check: {len(unjust)}")
            print("\n".join(f"  {path}" for path in unjust[:20]))
        print(f"{len(fuzz.wrong)} wrong answers")
        print("\n".join(dict.fromkeys(fuzz.wrong)))
    return 1 if fuzz.wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "80")
    sys.exit(main(sys.argv[1:]))
