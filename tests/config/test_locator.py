"""The locator against tomli: every path that tomli yields is located, and its text stands there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from curvlab.config.locator import Path, Position, locate

KEYS = st.sampled_from(
    ["a", "b-c", "lr", "3", "x.y", "", 'q"t', "naïve", "tab\t", "# no", "[h]", "a'b", "=", "\x1b"]
)
STRINGS = st.sampled_from(
    [
        "",
        "plain",
        "a = 1",
        "[x]",
        "# no comment",
        "two\nlines",
        'say "hi"',
        "it's",
        '"""',
        "'''",
        "back\\slash",
        "}",
        ",",
    ]
)
SCALARS = st.one_of(
    st.integers(-9, 10**6), st.booleans(), STRINGS, st.sampled_from([0.5, -1e-3, 1e20, float("inf")])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=5)


class Writer:
    """Writes data as TOML in every style that means the same, as ``draw`` chooses."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def pick(self, *options: str) -> str:
        return str(self.draw(st.sampled_from(options)))

    def document(self, data: dict[str, Any]) -> str:
        return self.pick("", "# top\n\n") + "".join(self.table(data, ()))

    def table(self, data: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
        """Values that go inline first, then those that get headers of their own."""
        headed = {
            k: v
            for k, v in data.items()
            if self.may_have_header(v) and self.pick("header", "inline") == "header"
        }
        for key, value in data.items():
            if key not in headed:
                yield from self.pair([key], value)
        for key, value in headed.items():
            inner = (*path, key)
            name = self.pick(".", " . ").join(self.key(k) for k in inner)
            tables, left, right = ([value], "[", "]") if isinstance(value, dict) else (value, "[[", "]]")
            for table in tables:
                yield (
                    self.pick("", "\n", "  ")
                    + f"{left}{self.pick('', ' ')}{name}{self.pick('', ' ')}{right}{self.end()}"
                )
                yield from self.table(table, inner)

    def pair(self, keys: list[str], value: Any) -> Iterator[str]:
        """``key = value``, or dotted keys for a table that has some."""
        if isinstance(value, dict) and value and self.pick("dotted", "inline") == "dotted":
            for key, inner in value.items():
                yield from self.pair([*keys, key], inner)
            return
        name = self.pick(".", " . ", "\t.").join(self.key(k) for k in keys)
        yield f"{self.pick('', '  ')}{name}{self.pick('=', ' = ')}{self.value(value)}{self.end()}"

    def value(self, value: Any) -> str:
        if isinstance(value, dict):
            inside = ", ".join(f"{self.key(k)} = {self.value(v)}" for k, v in value.items())
            return "{" + self.pick("", " ") + inside + self.pick("", " ") + "}"
        if isinstance(value, list):
            gap = self.pick("", " ", "\n", " # inside ] it\n")
            inside = f",{gap}".join(self.value(v) for v in value)
            return f"[{gap}{inside}{self.pick('', ',') if value else ''}{gap}]"
        if isinstance(value, bool):
            return "true" if value else "false"
        return self.string(value) if isinstance(value, str) else repr(value)

    def string(self, text: str) -> str:
        styles = [_basic(text), f'"""\n{_basic(text)[1:-1]}"""']
        if "'" not in text and "\n" not in text:
            styles.append(f"'{text}'")
        if "'''" not in text and not text.endswith("\\"):
            styles.append(f"'''\n{text}'''")
        if text and not re.search(r'["\\]', text):
            styles.append(f'"""{text}"""')
        return self.pick(*styles)

    def key(self, key: str) -> str:
        styles = [_basic(key)]
        if re.fullmatch(r"[A-Za-z0-9_-]+", key):
            styles.append(key)
        if not re.search(r"['\x00-\x08\x0a-\x1f]", key):
            styles.append(f"'{key}'")
        return self.pick(*styles)

    def end(self) -> str:
        return self.pick("\n", "  # why = [not]\n", "\n\n", " \r\n")

    def may_have_header(self, value: Any) -> bool:
        return isinstance(value, dict) or (
            isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)
        )


def _basic(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@st.composite
def texts(draw: Any) -> str:
    return Writer(draw).document(draw(DOCUMENTS))


def paths(data: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*at, key), value
        yield from paths(value, (*at, key))


def stands_there(text: str, position: Position, name: Any, value: Any) -> bool:
    """Whether the key ``name``, or an array's element ``value``, begins at the position."""
    rest = text[position.offset :]
    if isinstance(name, str):
        return _reads_as_key(rest, name)
    if isinstance(value, dict) and not rest.startswith("{"):
        return True  # an element of an array of tables: its header's name, which its own path checks
    ends = (
        i for i, c in enumerate(rest, start=1) if c in "\"']}" or i == len(rest) or rest[i] in " ,]}\n\r#"
    )
    return any(_reads_as_value(rest[:end], value) for end in ends)


def _reads_as_key(rest: str, name: str) -> bool:
    bare = re.match(r"[A-Za-z0-9_-]+|'[^']*'|\"(?:[^\"\\]|\\.)*\"", rest)
    return bare is not None and tomli.loads(f"{bare.group()} = 0") == {name: 0}


def _reads_as_value(text: str, value: Any) -> bool:
    try:
        return tomli.loads(f"v = {text}") == {"v": value}
    except tomli.TOMLDecodeError:
        return False


@given(texts())
def test_every_path_of_tomli_is_located_and_stands_there(text: str) -> None:
    data = tomli.loads(text)
    found = locate(text)
    expected = dict(paths(data))
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        position = found[path]
        assert stands_there(text, position, path[-1], value), (path, position, text[position.offset :][:30])
        lines = text.split("\n")
        assert text[position.offset :].startswith(lines[position.line - 1][position.column - 1 :])


def test_a_table_stands_at_its_header_even_if_a_sub_table_came_first() -> None:
    found = locate("[a.b]\nx = 1\n[a]\ny = 2\n")
    assert found["a",] == Position(3, 2, 13)
    assert found["a", "b"] == Position(1, 4, 3)


def test_elements_of_arrays_of_tables_stand_at_their_own_headers() -> None:
    found = locate("[[t]]\nx = 1\n\n[[t]]\nx = 2\n[t.sub]\ny = 3\n[[t.rows]]\nz = 4\n")
    assert [found[path].line for path in (("t",), ("t", 0), ("t", 1), ("t", 1, "sub", "y"))] == [1, 1, 4, 7]
    assert found["t", 1, "rows", 0, "z"].line == 9


@pytest.mark.parametrize("text", ["", "\n\n# only a comment", "a=1", "[t]"])
def test_a_text_may_end_anywhere(text: str) -> None:
    assert locate(text).keys() == dict(paths(tomli.loads(text))).keys()


def test_a_value_may_look_like_anything() -> None:
    text = (
        "a = 1979-05-27 07:32:00Z # [b]\n"
        'c = "x] = \\" #"\n'
        'd = """\n[e]\nf = 1 \\"""\n""""\n'
        "g = '''h = \\'''\n"
        "i = 2\n"
    )
    assert (
        locate(text).keys() == {("a",), ("c",), ("d",), ("g",), ("i",)} == {(k,) for k in tomli.loads(text)}
    )
