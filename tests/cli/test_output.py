"""Tables and names fit a terminal of 80 columns, and no name is broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvlab.cli.naming import name_override
from curvlab.cli.output import table_lines

WIDE = ("structure", "block-diagonal", "curvlab-structures 0.1.0", "blocks of one size on the diagonal " * 3)
WIDER = ("blocks.0.attention.query.weight" * 2, "128×128", "kfac", "a reason " * 12)


@pytest.mark.parametrize(
    "rows", [[WIDE], [WIDER, WIDE], [("a", "b", "c", "d")], [("x" * 200, "", "", "")], []]
)
def test_a_table_fits_and_keeps_every_word(rows: list[tuple[str, ...]]) -> None:
    columns = ("kind", "name", "distribution", "what it is")
    entries = table_lines(columns, rows, 80)
    assert len(entries) == len(rows) + 1
    assert all(len(line) <= 80 for entry in entries for line in entry)
    for row, entry in zip(rows, entries[1:], strict=True):
        assert "".join("".join(entry).split()) == "".join("".join(row).split())
        for name in row[:-1]:
            assert len(name) > 80 or name in "\n".join(entry)


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        ([], None, []),
        (["run.steps=3", "report=quiet"], None, []),
        (["method.structure=diagonal"], None, ['run.name="dense-structure-diagonal"']),
        (["method.use=kfac", "method.lr=1e-3"], None, ['run.name="dense-kfac-lr-1e-3"']),
        (['method.structure={ use = "auto", limit = 3 }'], None, ['run.name="dense-structure-auto-limit-3"']),
        (["method.structure=diagonal", "run.name=mine"], None, []),
        (["method.structure=diagonal"], "mine", ['run.name="mine"']),
    ],
)
def test_a_run_is_named_by_what_set_changes(
    tmp_path: Path, settings: list[str], name: str | None, expected: list[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[run]\nname = "dense"\n[method]\nuse = "singd"\n', encoding="utf-8")
    assert name_override([file], settings, name) == expected
