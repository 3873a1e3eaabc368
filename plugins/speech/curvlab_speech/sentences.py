"""Sentences to speak: verses of the King James Bible, or a file's own."""

from __future__ import annotations

import re
from pathlib import Path

from curvlab.errors import DataError
from curvlab.tasks.verses import verses as of_the_bible

HOW_TO_GET = (
    "the program `bible`, which prints the text to speak, was not found: run `apt-get install bible-kjv` on "
    "Debian or Ubuntu, or name a text of your own with --text FILE"
)

#: a sentence ends at one of these before a space
_END = re.compile(r"(?<=[.!?])\s+")
_LETTERS = re.compile(r"[^\W\d_]{2,}")


def verses() -> list[str]:
    """The 31,102 verses, in order, without their numbers; raises ``DataError`` without the program."""
    return of_the_bible(HOW_TO_GET)


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
