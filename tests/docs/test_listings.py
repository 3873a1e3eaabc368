"""What pages show of the code is what the code is."""

from __future__ import annotations

import re
from collections.abc import Callable

import listings
import pytest
import tomli
from typer.testing import CliRunner

import curvlab.config
from curvlab.cli.app import app
from curvlab.config.knobs import read_method
from curvlab.registry.loader import installed
from tests.test_docs import PAGES, ROOT

MathML = Callable[..., str]

METHODS = [e.name for e in installed().method_entries() if listings.OURS.fullmatch(e.distribution)]
#: ``curvlab plugins new`` and the like, wherever a page names a command
NAMED = re.compile(r"(?:^|`)curvlab (?!is )((?:[a-z]+ ?){1,2})", re.MULTILINE)  # no sentence about it
#: commands that stand above others
GROUPS = ("config", "plugins", "tasks", "bench")


@pytest.fixture
def mathml() -> MathML:
    """The site's renderer of formulas."""
    for module in ("docutils", "latex2mathml"):
        pytest.importorskip(module, reason="the site's tools ask for Python 3.11")
    from mathml import mathml

    made: MathML = mathml
    return made


def method(data: dict[str, object]) -> object:
    """The method of a configuration."""
    given = {"task": {"use": "digits"}, "run": {"steps": 1}, **data}
    return curvlab.config.build(curvlab.config.load(data=given), installed()).method


@pytest.mark.parametrize("name", METHODS)
def test_a_composition_spelled_out_is_the_method(name: str) -> None:
    text = listings.composition(name).removeprefix("```toml\n").removesuffix("\n```")
    assert method(tomli.loads(text)) == method({"method": {"use": name}})


@pytest.mark.parametrize("name", METHODS)
def test_a_default_that_is_shown_may_be_written(name: str) -> None:
    """Every knob at the default of its row makes the method as it is, unless it implies others."""
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", listings.knobs(name), re.MULTILINE)
    assert rows
    implying = {knob.name for knob in read_method(installed().method(name)).knobs.values() if knob.implies}
    for knob, value in ((knob, value) for knob, value in rows if knob not in implying):
        given = tomli.loads(f"{knob} = {value}")
        assert method({"method": {"use": name, **given}}) == method({"method": {"use": name}}), knob


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_that_a_page_names_exists(page: object) -> None:
    for words in set(NAMED.findall(page.read_text())):  # type: ignore[attr-defined]
        first, *second = words.split()
        command = [first, *second] if first in GROUPS else [first]
        told = CliRunner().invoke(app, [*command, "--help"])
        assert told.exit_code == 0, f"curvlab {' '.join(command)}"


def test_every_change_note_is_on_the_page_of_changes_under_its_kind() -> None:
    text = listings.changes()
    notes = [p for p in (ROOT / "changelog.d").glob("*.md") if p.name != "README.md"]
    assert sum(line.startswith("* ") for line in text.splitlines()) == len(notes)
    under = {section.split("\n")[0].lower(): section for section in text.split("## ")}
    for note in notes:
        kind = next(word for word in note.stem.split(".") if word in under)
        assert note.read_text(encoding="utf-8").splitlines()[0] in under[kind], note.name


def test_settings_are_those_of_the_class_with_their_notes() -> None:
    text = listings.parts("task")
    assert "| `batch_size` | a whole number | `128` | examples of a mini-batch, ≥ 1 |" in text


@pytest.mark.parametrize("latex", ["S'", "Q_B'", r"(Q_B'^\top Q_B)^2", r"L'(\alpha)"])
def test_a_prime_stands_beside_its_letter_and_is_raised_once(mathml: MathML, latex: str) -> None:
    text = mathml(latex, block=False)
    assert re.search(r"<mrow><mi>[SQL]</mi><mo [^>]*>&#x02032;</mo></mrow>", text)
    assert "<mi>&#x02032;</mi>" not in text


def test_bars_of_a_size_hold_what_is_between_them(mathml: MathML) -> None:
    assert mathml("|x|", block=False).count('lspace="0.05em" rspace="0.05em">&#x0007C;</mo>') == 2


def test_an_array_is_shown_on_one_line() -> None:
    assert "| `hidden` | an array, each a whole number | `[128, 128]` |" in listings.parts("task")


def test_an_unknown_command_in_a_formula_is_refused(mathml: MathML) -> None:
    assert "<msup>" in mathml(r"K^\top K", block=False)
    with pytest.raises(ValueError, match="nothere"):
        mathml(r"\nothere{x}", block=True)
