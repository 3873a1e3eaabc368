"""Configurations with planted faults: valid files, and seeded random changes to their values and text."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from curvlab.config import load, resolve
from curvlab.config.knobs import read_method
from curvlab.registry import Registry

EXAMPLES = Path(__file__).parents[2] / "examples"
TASKS = ("digits", "quadratic", "fashion-vit", "poisson", "curves")

Place = tuple[str | int, ...]

#: values of every type of TOML, at and beyond the edges of what a setting takes
ODD: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, -(2**31), 2**31, 2**53 + 1, 2**63 - 1, -(2**63)),
    *(0.0, -0.0, 0.5, 1.0, -1.0, 1.5, 1e-45, 1e-300, 5e-324, 3.4e38, 3.5e38, 1e39, -1e39, 1e300, 1e308),
    *(float("inf"), float("-inf"), float("nan"), True, False),
    *("", " ", "none", "kfac", "float32", "dense", "1e-3", "true", "0", "a.b", "../up", "use", "lr"),
    *(
        "\u00e9\u4e2d\U0001f600",
        "\u202eright to left",
        "a\tb\nc",
        "\x1b[31mred\x07",
        "\x00",
        "\x7f",
        "\u2028",
    ),
    *("curvlab.parts.steps:Rate", "no.such.module:Class", "os:path", "a:b:c", ":", "curvlab-kfac:kfac"),
    *("x" * 300, "long " * 20_000, "{}", "%s %d", "[/red]"),
    *(
        [],
        [1],
        [1, "a"],
        [[1], [2]],
        [-1, 0],
        [0.5],
        [{}],
        [{"use": "momentum"}],
        ["ema", "ema"],
        list(range(500)),
    ),
    *({}, {"use": "dense"}, {"use": 3}, {"use": []}, {"": 1}, {"a": {"b": {"c": 1}}}, {"use": "cosine"}),
    *(datetime.date(2024, 2, 29), datetime.time(7, 32), datetime.datetime(1979, 5, 27, 7, 32)),
    datetime.datetime(1979, 5, 27, 7, 32, tzinfo=datetime.timezone.utc),
)

#: text that stands where a value stood: what no value of Python writes
RAW = (
    *(
        "9" * 5_000,
        "-" + "1" * 4_301,
        "9223372036854775808",
        "0x" + "f" * 40,
        "1_000",
        "0b11",
        "0o17",
        "1e4000",
    ),
    *(
        "[" * 40 + "]" * 40,
        "[" * 2_000 + "]" * 2_000,
        "{a=" * 40 + "1" + "}" * 40,
        "{a=" * 900 + "1" + "}" * 900,
    ),
    *(
        "{ " + ".".join("a" * 60) + " = 1 }",
        "+inf",
        "-nan",
        "'''\nlines\n'''",
        "TRUE",
        "nil",
        "1.",
        ".5",
        "01",
    ),
)

CHARACTERS = "\"'[]{}=.,#\\\n\r\t\x00\x01\x1b\u00e9\u2028\ufeff-+_ 0aZ"


def starts(registry: Registry) -> list[str]:
    """Valid files as text: the examples, and every method on several tasks, in short and spelled out."""
    found = [path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.toml"))]
    for i, entry in enumerate(registry.method_entries()):
        file = read_method(entry)
        knobs = {name: file.default(knob) for name, knob in file.knobs.items()}
        knobs = {name: value for name, value in knobs.items() if value is not None}
        for j, task in enumerate(TASKS):
            data: dict[str, Any] = {"run": {"steps": 3, "seed": 1}, "task": {"use": task, "batch_size": 16}}
            data["method"] = {"use": entry.name, **(knobs if j % 2 else {})}
            if (i + j) % len(TASKS) == 0:
                data = dict(resolve(load(data=data), registry).plan.resolved)
            found.append(tomli_w.dumps(data))
    return found


def mutated(text: str, chance: random.Random, names: Mapping[str, list[str]]) -> bytes:
    """A file with one to three changes of values or text; ``names`` are those of every kind of part."""
    raw: list[str] = []
    if chance.random() < 0.8:
        data = tomli.loads(text)
        for _ in range(chance.choice((1, 1, 2, 3))):
            _change(data, chance, names, raw)
        text = tomli_w.dumps(data)
        for i, written in enumerate(raw):
            text = text.replace(f'"@raw{i}@"', written)
        if chance.random() < 0.9:
            return text.encode()
    return _corrupted(text, chance)


def assignment(data: Mapping[str, Any], chance: random.Random, names: Mapping[str, list[str]]) -> str:
    """``key=value`` for ``--set``: mostly a key that exists, with any value as TOML or as bare text."""
    places = [place for place in _places(data) if all(isinstance(key, str) for key in place)]
    key = ".".join(str(k) for k in chance.choice(places))
    kind = chance.random()
    if kind < 0.15:
        key = chance.choice(
            ("", ".", "a..b", "=", '"', "method.", key + ".x", key + "." + "a." * 2_000 + "a", "\x00")
        )
    elif kind < 0.3:
        key = _misspelt(key, chance)
    near = _above(data, tuple(key.split(".")))[key.split(".")[-1]] if kind >= 0.6 else None
    if isinstance(near, (int, float)) and not isinstance(near, bool):
        return f"{key}={chance.choice((near, near, near * 2, near + 1, -near, near / 3))}"
    value = chance.choice((*RAW, *map(str, _ODD_TEXT), *(_toml(v) for v in ODD), _name(chance, names)))
    return f"{key}={value}" if chance.random() < 0.95 else key


_ODD_TEXT = (
    "",
    " ",
    "=",
    "1\nb=2",
    "'",
    '"""',
    "[",
    "{",
    "# comment",
    "1 # comment",
    "kfac",
    "\x1b[0m",
    "\u00e9",
)


def _toml(value: Any) -> str:
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


# -- values ------------------------------------------------------------------------------------------


def _places(data: Any, at: Place = ()) -> Iterator[Place]:
    """Every key and entry below."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from _places(value, (*at, key))


def _above(data: Any, place: Place) -> Any:
    """What holds the value at a place."""
    for key in place[:-1]:
        data = data[key]
    return data


def _change(
    data: dict[str, Any], chance: random.Random, names: Mapping[str, list[str]], raw: list[str]
) -> None:
    places = list(_places(data))
    if not places:
        return
    place = chance.choice(places)
    holder, key = _above(data, place), place[-1]
    value = holder[key]
    changes = [_replace, _replace, _nudge, _nudge, _nudge, _remove, _rename, _foreign, _raw, _part]
    chance.choice(changes)(data, holder, key, value, chance, names, raw)


def _replace(data: Any, holder: Any, key: Any, value: Any, chance: random.Random, *_: Any) -> None:
    holder[key] = chance.choice(ODD)


def _nudge(data: Any, holder: Any, key: Any, value: Any, chance: random.Random, *_: Any) -> None:
    """A number beside the one that stood there, or of another size or sign."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _replace(data, holder, key, value, chance)
        return
    holder[key] = chance.choice(
        (
            -value,
            value + 1,
            value - 1,
            value * 1e10,
            value * 1e-10,
            value * 1e45,
            float(value),
            -1,
            0,
            1,
            1.0,
            -1e-9,
        )
    )


def _remove(data: Any, holder: Any, key: Any, *_: Any) -> None:
    del holder[key]


def _rename(data: Any, holder: Any, key: Any, value: Any, chance: random.Random, *_: Any) -> None:
    if isinstance(holder, dict):
        holder[_misspelt(key, chance)] = holder.pop(key)
    else:
        holder.append(value)


def _misspelt(key: str, chance: random.Random) -> str:
    at = chance.randrange(len(key) + 1)
    less, more = key[:at] + key[at + 1 :], key[:at] + "e" + key[at:]
    others = ("", " ", key * 400, key + "\nlr", "use", "lr", "extends", "0", "none")
    return chance.choice((less, more, key.upper(), "é" + key, key + "\x1b[2J", *others))


def _foreign(data: Any, holder: Any, key: Any, value: Any, chance: random.Random, *_: Any) -> None:
    """Something else of the same file in this place, or a copy of this in a place of another table."""
    other = chance.choice(list(_places(data)))
    found = _above(data, other)[other[-1]]
    copied = tomli.loads(tomli_w.dumps({"v": found}))["v"] if "@raw" not in str(found) else 1
    if isinstance(found, dict) and chance.random() < 0.5:
        tables = [d for d in data.values() if isinstance(d, dict)]
        (chance.choice(tables) if tables else data)[str(other[-1])] = copied
    else:
        holder[key] = copied


def _raw(
    data: Any, holder: Any, key: Any, value: Any, chance: random.Random, names: Any, raw: list[str]
) -> None:
    holder[key] = f"@raw{len(raw)}@"
    raw.append(chance.choice(RAW))


def _part(
    data: Any,
    holder: Any,
    key: Any,
    value: Any,
    chance: random.Random,
    names: Mapping[str, list[str]],
    raw: Any,
) -> None:
    """Another part's name, of the same kind or not, with or without settings."""
    name = _name(chance, names)
    holder[key] = chance.choice(
        (name, {"use": name}, {"use": name, "lr": 0.1}, [name], {"use": name, "decay": -1})
    )


def _name(chance: random.Random, names: Mapping[str, list[str]]) -> str:
    return chance.choice(names[chance.choice(sorted(names))])


# -- text --------------------------------------------------------------------------------------------


def _corrupted(text: str, chance: random.Random) -> bytes:
    lines = text.split("\n")
    at = chance.randrange(len(text) + 1)
    line = chance.randrange(len(lines))
    kind = chance.randrange(10)
    if kind == 0:
        text = text[:at] + text[at + chance.choice((1, 1, 5)) :]
    elif kind == 1:
        text = text[:at] + chance.choice(CHARACTERS) + text[at:]
    elif kind == 2:
        text = text[:at]
    elif kind == 3:  # a key or a header twice
        text = "\n".join([*lines[: line + 1], *lines[line:]])
    elif kind == 4:
        other = chance.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
        text = "\n".join(lines)
    elif kind == 5:
        text = re.sub(r"=", chance.choice((":", "==", " ", "=\n")), text, count=1 + line)
    elif kind == 6:
        return (
            text[:at].encode()
            + chance.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00"))
            + text[at:].encode()
        )
    elif kind == 7:
        text = text.replace("\n", chance.choice(("\r\n", "\r", "\n\n")))
    elif kind == 8:
        header = chance.choice(
            (".".join("a" * 3_000), "run", "run.steps", "", "[", "'", "method.preconditioner.x")
        )
        text = "\n".join([*lines[:line], f"[{header}]", *lines[line:]])
    else:
        return text.encode(chance.choice(("utf-16", "utf-8-sig", "latin-1")), errors="replace")
    return text.encode()
