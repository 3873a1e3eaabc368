"""``tasks prepare``: a preparation's fields are the command's options."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Invoke
from tests.cli.prepared import Sums

TASK, NEEDY = "tests.cli.prepared:Prepared", "tests.cli.prepared:Undecided"


def said(folder: Path) -> str:
    return (folder / "said").read_text(encoding="utf-8")


def test_without_options_the_preparation_is_as_its_defaults_say(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("tasks", "prepare", TASK, "--to", str(tmp_path / "a"))
    assert result.exit_code == 0, result.stderr
    assert said(tmp_path / "a") == repr(Sums())
    assert result.stdout == "half way\ndone\n"


def test_options_set_fields_by_their_types(invoke: Invoke, tmp_path: Path) -> None:
    options = ["--minutes", "3", "--data-seed=7", "--text", "1984", "--voices", '["x"]', "--kind", "loud"]
    result = invoke("tasks", "prepare", TASK, *options, "--to", str(tmp_path / "a"))
    assert result.exit_code == 0, result.stderr
    assert said(tmp_path / "a") == repr(Sums(3.0, 7, "1984", ("x",), "loud"))


def test_the_folder_may_stand_anywhere_after_the_name(invoke: Invoke, tmp_path: Path) -> None:
    for k, words in enumerate(
        (["--to", "{}", "--data-seed", "2"], ["--data-seed", "2", "--to", "{}"], ["--to={}", "--data-seed=2"])
    ):
        folder = tmp_path / str(k)
        result = invoke("tasks", "prepare", TASK, *(word.format(folder) for word in words))
        assert result.exit_code == 0, result.stderr
        assert said(folder) == repr(Sums(data_seed=2))


BAD = [
    (["--minuts", "3"], 2, 'no option --minuts\n  Did you mean "--minutes"?'),
    (["--minuts", "3"], 2, "Options: --data-seed, --kind, --minutes, --text, --to, --voices."),
    (["7"], 2, "takes options by name, not 7"),
    (["--minutes"], 2, "--minutes needs a value, a number"),
    (["--minutes", "--kind", "soft"], 2, "--minutes needs a value, a number"),
    (["--minutes", "2", "--minutes", "3"], 2, "--minutes is given twice"),
    (["--minutes", "long"], 3, '--minutes: expected a number, got the string "long"'),
    (["--data-seed", "1.5"], 3, "--data-seed: expected a whole number, got 1.5"),
    (["--kind", "shrill"], 3, '--kind: expected one of "soft", "loud", got the string "shrill"'),
    (["--minutes", "0.5"], 3, "--minutes: minutes = 0.5 must be at least 1"),
]


@pytest.mark.parametrize(("options", "code", "says"), BAD)
def test_wrong_options_are_named_and_nothing_is_made(
    options: list[str], code: int, says: str, invoke: Invoke, tmp_path: Path
) -> None:
    result = invoke("tasks", "prepare", TASK, "--to", str(tmp_path / "a"), *options)
    assert result.exit_code == code
    assert says in result.stderr
    assert not (tmp_path / "a").exists()


def test_all_values_of_wrong_types_are_listed_at_once(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("tasks", "prepare", TASK, "--to", str(tmp_path), "--minutes", "x", "--data-seed", "y")
    assert result.stderr.startswith("2 faults")
    assert "--minutes" in result.stderr
    assert "--data-seed" in result.stderr


def test_a_field_without_default_must_be_given(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("tasks", "prepare", NEEDY, "--to", str(tmp_path))
    assert result.exit_code == 2
    assert "needs --many VALUE, a whole number" in result.stderr
    assert invoke("tasks", "prepare", NEEDY, "--to", str(tmp_path), "--many", "4").stdout == "4\n"


def test_what_is_missing_is_asked_for_with_the_whole_command(invoke: Invoke) -> None:
    for words in ([], [TASK]):
        result = invoke("tasks", "prepare", *words)
        assert result.exit_code == 2
        assert "curvlab tasks prepare NAME --to DIR" in result.stderr


def test_options_before_the_name_are_refused(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("tasks", "prepare", "--minutes", "3", TASK, "--to", str(tmp_path))
    assert result.exit_code == 2
    assert "the option --minutes must follow the name of the task" in result.stderr


def test_the_listings_option_is_refused_where_nothing_is_listed(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("tasks", "--json", "prepare", TASK, "--to", str(tmp_path / "a"))
    assert result.exit_code == 2
    assert "has no option --json" in result.stderr


def test_a_task_without_preparation_says_so_and_where_its_data_are(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("tasks", "prepare", "digits", "--to", str(tmp_path))
    assert result.exit_code == 2
    assert 'task "digits" needs no preparation: its data are inside scikit-learn' in result.stderr


def test_an_unknown_task_suggests_the_nearest(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("tasks", "prepare", "curvs", "--to", str(tmp_path))
    assert result.exit_code == 3
    assert 'Did you mean "curves"' in result.stderr


def test_what_the_preparation_refuses_is_an_error_like_any_other(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("tasks", "prepare", TASK, "--to", str(tmp_path))
    assert result.exit_code == 3
    assert result.stderr == f"error: {tmp_path} is there already\n"


def test_help_after_a_name_lists_that_tasks_options_with_type_and_default(invoke: Invoke) -> None:
    result = invoke("tasks", "prepare", TASK, "--help")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "Numbers, written down." in lines
    assert "--minutes VALUE a number [default: 1.5]" in lines
    assert "--text VALUE a string" in lines
    assert '--kind VALUE one of "soft", "loud" [default: soft]' in lines


def test_help_without_a_name_is_of_the_command(invoke: Invoke) -> None:
    result = invoke("tasks", "prepare", "-h")
    assert result.exit_code == 0
    assert "--to DIR" in result.stdout
