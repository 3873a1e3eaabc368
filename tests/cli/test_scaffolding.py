"""``curvlab plugins new``: what it says, what it refuses, what it warns of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curvlab.registry.kinds import KINDS
from tests.cli.conftest import Invoke, Shell


@pytest.fixture(autouse=True)
def working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_plugin_is_written_beside_and_the_next_commands_are_said(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("plugins", "new", "structure", "my-arrow")
    assert (result.exit_code, result.stderr) == (0, "")
    assert (tmp_path / "curvlab-my-arrow" / "curvlab_my_arrow" / "my_arrow.py").is_file()
    assert "curvlab_my_arrow/my_arrow.py is the one to edit" in result.stdout
    for command in (
        "pip install -e curvlab-my-arrow",
        "curvlab plugins check my-arrow",
        "curvlab train curvlab-my-arrow/example.toml",
    ):
        assert f"\n  {command}\n" in result.stdout + "\n"


def test_the_folder_can_be_chosen_and_the_answer_be_json(invoke: Invoke, tmp_path: Path) -> None:
    said = json.loads(invoke("plugins", "new", "krylov", "my-solver", "--dir", "deep/er", "--json").stdout)
    assert (said["kind"], said["name"], said["folder"]) == ("krylov", "my-solver", "deep/er")
    written = {str(f.relative_to(tmp_path)) for f in (tmp_path / "deep").rglob("*") if f.is_file()}
    assert written == set(said["files"])
    assert said["edit"] in written


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["structur", "x"], 'unknown kind "structur"\n  Did you mean "structure"?'),  # codespell:ignore
        (["structure", "MyArrow"], '"MyArrow" is not a valid plugin name; use "my-arrow"'),
        (["structure", "none"], '"none" is not a valid plugin name: '),
    ],
)
def test_what_cannot_be_meant_ends_with_exit_2_and_writes_nothing(
    arguments: list[str], complaint: str, invoke: Invoke, tmp_path: Path
) -> None:
    result = invoke("plugins", "new", *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "curvlab-mine").mkdir()
    (tmp_path / "curvlab-mine" / "thesis.tex").write_text("almost done")
    result = invoke("plugins", "new", "step", "mine")
    assert result.exit_code == 2
    assert "curvlab-mine exists and is not an empty folder. Nothing was written." in result.stderr
    assert [f.name for f in (tmp_path / "curvlab-mine").iterdir()] == ["thesis.tex"]


def test_a_name_that_is_taken_is_written_all_the_same_with_a_warning(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("plugins", "new", "step", "armijo")
    assert result.exit_code == 0
    assert 'warning: step "armijo" is also registered by curvlab' in result.stderr
    assert '"curvlab-armijo:armijo"' in result.stderr
    assert (tmp_path / "curvlab-armijo").is_dir()


def test_a_name_is_taken_within_its_kind_only(invoke: Invoke) -> None:
    assert invoke("plugins", "new", "damping", "armijo").stderr == ""


def test_a_distribution_that_would_be_replaced_is_warned_of(invoke: Invoke) -> None:
    result = invoke("plugins", "new", "step", "fake")
    assert "a distribution curvlab-fake is installed: this one would replace it" in result.stderr


def test_writing_imports_nothing_heavy(shell: Shell) -> None:
    code = (
        "import sys\nfrom curvlab.cli.app import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    result = shell("plugins", "new", "task", "my-task", python=code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] in ("[]", "['pydantic']")  # Typer's own doing


def test_help_names_every_kind(invoke: Invoke) -> None:
    said = "".join(invoke("plugins", "new", "--help").stdout.split())
    assert all(kind in said for kind in KINDS)
