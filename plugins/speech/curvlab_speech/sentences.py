"""Sentences to speak: verses of the King James Bible, or a file's own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from curvlab.errors import DataError

#: everything, for Debian's ``bible`` (package bible-kjv, which reads bible-kjv-text)
WHOLE = "gen1:1-rev22:21"

HOW_TO_GET = (
    "the program `bible`, which prints the text to speak, was not found: run `apt-get install bible-kjv` on "
    "Debian or Ubuntu, or name a text of your own with --text FILE"
)

#: a sentence ends at one of these before a space
_END = re.compile(r"(?<=[.!?])\s+")
_LETTERS = re.compile(r"[^\W\d_]{2,}")


def verses() -> list[str]:
    """The 31,102 verses, in order, without their numbers; raises ``DataError`` without the program."""
    program = shutil.which("bible")
    if program is None:
        raise DataError(HOW_TO_GET)
    # -f: a verse on each line, behind its number
    done = subprocess.run([program, "-f", WHOLE], capture_output=True, text=True, check=False)
    found = [line.partition(" ")[2].strip() for line in done.stdout.splitlines()]
    found = [verse for verse in found if verse]
    if done.returncode or not found:
        why = done.stderr.strip() or "no verses; is bible-kjv-text installed?"
        raise DataError(f"{program} -f {WHOLE}: {why}")
    return found


def sentences(path: Path) -> list[str]:
    """The sentences of a UTF-8 text, in order, spaces made one; those without a word are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    found = [" ".join(part.split()) for part in _END.split(text)]
    found = [sentence for sentence in found if _LETTERS.search(sentence)]
    if not found:
        raise DataError(f"{path}: no sentence in it")
    return found
