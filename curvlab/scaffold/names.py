"""What a plugin of a given name calls its distribution, package, module and class."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

from curvlab.errors import UsageError
from curvlab.registry.suggest import advice

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

#: lines of code stay within the line length up to here
LONGEST = 28

#: a configuration's word for an empty place
_TAKEN = {"none"}


@dataclass(frozen=True)
class Names:
    """The names of one plugin; ``name`` is what a configuration writes."""

    name: str
    class_name: str

    @property
    def module(self) -> str:
        """The module that its author edits."""
        return self.name.replace("-", "_")

    @property
    def package(self) -> str:
        """The import package."""
        return f"curvlab_{self.module}"

    @property
    def distribution(self) -> str:
        """The name on a package index."""
        return f"curvlab-{self.name}"


def names_of(name: str, kind: str, reserved: frozenset[str]) -> Names:
    """The names that follow from a part's; its class does not take a word of ``reserved``.

    Raises ``UsageError`` for a name that cannot be a part's, a distribution's and a module's at once.
    """
    if not _NAME.fullmatch(name):
        plain = re.sub(r"[^a-z0-9]+", "-", _hyphenated(name)).strip("-")
        guess = f'; use "{plain}"' if _NAME.fullmatch(plain) and not _refusal(plain) else ""
        raise UsageError(
            f'"{name}" is not a valid plugin name{guess}\n'
            "  A name begins with a lower-case letter. It consists of lower-case letters and digits, "
            "with single hyphens between words, for example my-arrow."
        )
    refusal = _refusal(name)
    if refusal:
        raise UsageError(f'"{name}" is not a valid plugin name: {refusal}')
    words = "".join(word.capitalize() for word in name.split("-"))
    return Names(name, words if words not in reserved else words + kind.capitalize())


def kind_among(word: str, kinds: tuple[str, ...]) -> str:
    """``word``, if it is a kind; raises ``UsageError`` with the nearest one."""
    if word in kinds:
        return word
    raise UsageError(f'unknown kind "{word}"\n  {advice(word, kinds, "Kinds")}')


def _hyphenated(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def _refusal(name: str) -> str:
    if len(name) > LONGEST:
        return f"it has {len(name)} characters, at most {LONGEST} are allowed; use a shorter name"
    if name in _TAKEN:
        return "a configuration uses this word for an empty place; use another name"
    if keyword.iskeyword(name.replace("-", "_")) or keyword.iskeyword(name.capitalize()):
        return "it is a keyword of Python; use another name"
    return ""
