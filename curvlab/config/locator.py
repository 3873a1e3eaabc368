"""Where each key of a TOML text stands.

tomli parses and checks, but keeps no positions; this reads the same text again, only to find where
values are.  It expects text that tomli accepts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

#: keys and array indices, from the root
Path = tuple[str | int, ...]

_BLANK = " \t\r\n"
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", "e": "\x1b", '"': '"', "\\": "\\"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True)
class Position:
    """Line and column, from 1, and the offset into the text, from 0."""

    line: int
    column: int
    offset: int


def locate(text: str) -> dict[Path, Position]:
    """The position of every key (its name) and of every array's element (its value).

    A table's position is its header if it has one, else the first key that mentions it; an element
    of an array of tables stands at its header's name.
    """
    scanner = _Scanner(text)
    scanner.document()
    starts = [0, *(i + 1 for i, c in enumerate(text) if c == "\n")]
    found = {}
    for path, offset in scanner.found.items():
        line = bisect_right(starts, offset)
        found[path] = Position(line, offset - starts[line - 1] + 1, offset)
    return found


def beyond_depth(text: str, levels: int) -> Position:
    """The position of the first key or element that stands deeper than ``levels``; there must be one."""
    scanner = _Scanner(text, levels)
    try:
        scanner.document()
    except _TooDeep as found:
        before = text[: found.offset]
        return Position(before.count("\n") + 1, found.offset - before.rfind("\n"), found.offset)
    raise AssertionError("nothing in the text stands that deep")


class _TooDeep(Exception):
    """The scanner came to something deeper than it was to go."""

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class _Scanner:
    """A cursor over the text, and what it has found so far."""

    def __init__(self, text: str, levels: int | None = None) -> None:
        self.levels = levels
        self.text = text
        self.at = 0
        self.found: dict[Path, int] = {}
        self._headed: set[Path] = set()
        self._elements: dict[Path, int] = {}  # array of tables -> headers seen

    def document(self) -> None:
        table: Path = ()
        while self._skip():
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip(self) -> bool:
        """Over blanks, newlines and comments; whether anything follows."""
        while self.at < len(self.text):
            if self.text[self.at] in _BLANK:
                self.at += 1
            elif self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return True
        return False

    def _record(self, path: Path, offset: int, *, headed: bool = False) -> None:
        if self.levels is not None and len(path) > self.levels:
            raise _TooDeep(offset)
        if path not in self.found or (headed and path not in self._headed):
            self.found[path] = offset
        if headed:
            self._headed.add(path)

    def _header(self) -> Path:
        """``[a.b]`` or ``[[a.b]]``; the path of the table that the lines below it fill."""
        double = self.text.startswith("[[", self.at)
        self.at += 2 if double else 1
        keys = list(self._key())
        self.at += 2 if double else 1
        path: Path = ()
        for key, offset in keys[:-1]:
            path = (*path, key)
            self._record(path, offset)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        key, offset = keys[-1]
        path = (*path, key)
        self._record(path, offset, headed=True)
        if double:
            index = self._elements.get(path, 0)
            self._elements[path] = index + 1
            path = (*path, index)
            self._record(path, offset, headed=True)
        return path

    def _pair(self, table: Path) -> None:
        path = table
        for key, offset in self._key():
            path = (*path, key)
            self._record(path, offset)
        self.at += 1  # over "="
        self._skip()
        self._value(path)

    def _key(self) -> Iterator[tuple[str, int]]:
        """The parts of a dotted key, up to what follows it."""
        while True:
            self._skip()
            start = self.at
            if self.text[start] in "\"'":
                yield self._string(), start
            else:
                while self.text[self.at] not in " \t.=]":
                    self.at += 1
                yield self.text[start : self.at], start
            self._skip()
            if self.text[self.at] != ".":
                return
            self.at += 1

    def _value(self, path: Path) -> None:
        opening = self.text[self.at]
        if opening in "\"'":
            self._string()
        elif opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def _array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self._skip() and self.text[self.at] != "]":
            self._record((*path, index), self.at)
            self._value((*path, index))
            index += 1
            self._comma()
        self.at += 1

    def _inline(self, path: Path) -> None:
        self.at += 1
        while self._skip() and self.text[self.at] != "}":
            self._pair(path)
            self._comma()
        self.at += 1

    def _comma(self) -> None:
        if self._skip() and self.text[self.at] == ",":
            self.at += 1

    def _string(self) -> str:
        """Over a string of any of the four kinds; its value, which only keys need."""
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            return self._multiline(quote * 3)
        self.at += 1
        start, parts = self.at, []
        while self.text[self.at] != quote:
            if self.text[self.at] == "\\" and quote == '"':
                parts += [self.text[start : self.at], self._escape()]
                start = self.at
            else:
                self.at += 1
        parts.append(self.text[start : self.at])
        self.at += 1
        return "".join(parts)

    def _multiline(self, fence: str) -> str:
        self.at += 3
        while not self.text.startswith(fence, self.at):
            self.at += 2 if self.text[self.at] == "\\" and fence[0] == '"' else 1
        self.at += 3
        for _ in range(2):  # up to two quotes may stand before the closing three
            self.at += self.text.startswith(fence[0], self.at)
        return ""  # a key is never a multi-line string

    def _escape(self) -> str:
        letter = self.text[self.at + 1]
        if letter in _HEX_DIGITS:
            digits = self.text[self.at + 2 : self.at + 2 + _HEX_DIGITS[letter]]
            self.at += 2 + len(digits)
            return chr(int(digits, 16))
        self.at += 2
        return _ESCAPES[letter]
