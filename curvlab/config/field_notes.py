"""What ``#:`` comments say of the fields of a dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import re

#: ``#: text`` behind a field, or on the lines before it
_BEHIND = re.compile(r"^    (\w+)\s*:[^#\n]*#: (.*)$", re.MULTILINE)
_BEFORE = re.compile(r"((?:^    #: .*\n)+)    (\w+)\s*:", re.MULTILINE)


def field_notes(cls: type) -> dict[str, str]:
    """The comments by field, on one line each; empty for a class whose source is not at hand."""
    try:
        sources = [inspect.getsource(c) for c in reversed(cls.__mro__) if dataclasses.is_dataclass(c)]
    except (OSError, TypeError):  # a class that was typed at a prompt
        return {}
    source = "\n".join(sources)
    before = {n: " ".join(line.strip()[3:] for line in t.splitlines()) for t, n in _BEFORE.findall(source)}
    return {**before, **dict(_BEHIND.findall(source))}
