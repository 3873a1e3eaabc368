"""Merging: which layer wins, and where every value is said to come from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from curvlab.config import load
from curvlab.errors import ConfigError, UsageError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def origin(layers: Any, *path: str) -> str:
    node = layers.tree
    for key in path:
        node = node.table[key]
    return str(node.origin)


def test_later_files_override_earlier_and_set_overrides_both(tmp_path: Path) -> None:
    one = write(tmp_path, "one.toml", "[run]\nsteps = 1\nseed = 1\nkeep = 1\n")
    two = write(tmp_path, "two.toml", "[run]\nseed = 2\nkeep = 2\n")
    layers = load([one, two], ["run.keep=3"])
    assert layers.data["run"] == {"steps": 1, "seed": 2, "keep": 3}
    assert origin(layers, "run", "steps") == f"{one}:2"
    assert origin(layers, "run", "seed") == f"{two}:2"
    assert origin(layers, "run", "keep") == "--set"


def test_a_file_overrides_what_it_extends_wherever_it_is_named_from(tmp_path: Path) -> None:
    write(tmp_path, "base/deep.toml", "[run]\nsteps = 1\nseed = 1\nkeep = 1\n")
    write(tmp_path, "base/mid.toml", 'extends = "deep.toml"\n[run]\nseed = 2\nkeep = 2\n')
    top = write(tmp_path, "top.toml", 'extends = ["base/mid.toml"]\n[run]\nkeep = 3\n')
    assert load(top).data["run"] == {"steps": 1, "seed": 2, "keep": 3}


def test_of_two_extended_files_the_later_wins_and_a_diamond_is_no_circle(tmp_path: Path) -> None:
    write(tmp_path, "root.toml", "[run]\nsteps = 1\n")
    write(tmp_path, "a.toml", 'extends = "root.toml"\n[run]\nseed = 1\n')
    write(tmp_path, "b.toml", 'extends = "root.toml"\n[run]\nseed = 2\n')
    top = write(tmp_path, "top.toml", 'extends = ["a.toml", "b.toml"]\n')
    assert load(top).data["run"] == {"steps": 1, "seed": 2}


def test_a_circle_of_three_is_named_in_order(tmp_path: Path) -> None:
    for here, there in ("ab", "bc", "ca"):
        write(tmp_path, f"{here}.toml", f'extends = "{there}.toml"\n')
    with pytest.raises(ConfigError, match=r"a\.toml → b\.toml → c\.toml → a\.toml"):
        load(tmp_path / "a.toml")


def test_every_unreadable_file_is_told_at_once(tmp_path: Path) -> None:
    broken = write(tmp_path, "broken.toml", "[run\n")
    with pytest.raises(ConfigError) as caught:
        load([tmp_path / "gone.toml", broken, tmp_path])
    assert len(caught.value.faults) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_a_file_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "secret.toml", "[run]\n")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root reads everything, so chmod would prove nothing
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load(path)


def test_a_table_whose_use_changes_is_replaced_not_merged(tmp_path: Path) -> None:
    one = write(tmp_path, "one.toml", '[task]\nuse = "quadratic"\nnoise = 0.5\n')
    same = write(tmp_path, "same.toml", '[task]\nuse = "quadratic"\nsize = 7\n')
    other = write(tmp_path, "other.toml", '[task]\nuse = "digits"\n')
    assert load([one, same]).data["task"] == {"use": "quadratic", "noise": 0.5, "size": 7}
    assert load([one, other]).data["task"] == {"use": "digits"}


def test_a_bare_string_is_the_table_that_uses_it() -> None:
    one = {"sampler": "uniform", "method": {"step": {"use": "rate", "lr": 0.1}}}
    assert load(data=one, overrides=["sampler.batch_size=3"]).data["sampler"] == {
        "use": "uniform",
        "batch_size": 3,
    }
    assert load(data=one, overrides=["method.step=rate"]).data["method"]["step"] == {"use": "rate", "lr": 0.1}
    assert load(data=one, overrides=["method.step=armijo"]).data["method"]["step"] == {"use": "armijo"}


def test_overrides_do_not_depend_on_their_order_unless_they_are_for_one_key() -> None:
    data = {"method": {"use": "kfac", "lr": 0.1}}
    for overrides in (["method.use=adamw", "method.lr=2.0"], ["method.lr=2.0", "method.use=adamw"]):
        assert load(data=data, overrides=overrides).data["method"] == {"use": "adamw", "lr": 2.0}
    assert load(data=data, overrides=["method.lr=2.0", "method.lr=3.0"]).data["method"]["lr"] == 3.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("3", 3),
        ("true", True),
        ("kfac", "kfac"),
        ('"3"', "3"),
        ("[1, 2]", [1, 2]),
        ('{ use = "dense" }', {"use": "dense"}),
        ("a=b", "a=b"),
        ("", ""),
        ("1\nseed = 2", "1\nseed = 2"),
    ],
)
def test_the_value_of_set_is_toml_else_a_string(text: str, value: Any) -> None:
    assert load(overrides=[f"run.name={text}"]).data["run"]["name"] == value


@pytest.mark.parametrize("text", ["lr", "=3", " = 3", "a..b=1", "a b=1"])
def test_set_without_a_key_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="expected key=value"):
        load(overrides=[text])


def test_keys_of_set_may_be_quoted() -> None:
    assert load(overrides=['method."a.b"=1']).data["method"] == {"a.b": 1}


def test_set_reaches_into_arrays_by_index_and_by_use() -> None:
    data = {"method": {"on_update": [{"use": "clip", "norm": 1.0}, {"use": "momentum", "beta": 0.9}]}}
    by_index = load(data=data, overrides=["method.on_update.1.beta=0.5"])
    by_use = load(data=data, overrides=["method.on_update.momentum.beta=0.5"])
    assert by_index.data == by_use.data
    assert by_use.data["method"]["on_update"] == [
        {"use": "clip", "norm": 1.0},
        {"use": "momentum", "beta": 0.5},
    ]


def test_set_into_an_array_that_has_no_such_entry_is_told() -> None:
    with pytest.raises(ConfigError, match="there is no entry 7: the array has 1"):
        load(data={"method": {"on_update": ["clip"]}}, overrides=["method.on_update.7.norm=1"])


def test_none_in_python_data_counts_as_absent() -> None:
    assert load(data={"run": {"steps": 3, "epochs": None}}).data["run"] == {"steps": 3}


def test_python_data_extends_files_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "base.toml", "[run]\nsteps = 1\nseed = 1\n")
    monkeypatch.chdir(tmp_path)
    layers = load(data={"extends": "base.toml", "run": {"seed": 2}})
    assert layers.data["run"] == {"steps": 1, "seed": 2}
    assert origin(layers, "run", "seed") == "python"


def test_one_file_is_given_back_as_it_stands(tmp_path: Path) -> None:
    text = "# mine\n[run]\nsteps = 1_000  # many\n"
    assert load(write(tmp_path, "one.toml", text)).given == text


def test_several_sources_are_given_back_merged_and_named(tmp_path: Path) -> None:
    one = write(tmp_path, "one.toml", "[run]\nsteps = 1\n")
    two = write(tmp_path, "two.toml", "[run]\nseed = 2\n")
    given_back = load([one, two], ["run.keep=3"]).given
    assert given_back.startswith(f"# merged from {one}, {two}, ")
    assert tomli.loads(given_back) == {"run": {"steps": 1, "seed": 2, "keep": 3}}


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes("\ufeff[run]\r\nsteps = 1\r\nseed = 2\r\n".encode())
    layers = load(path)
    assert layers.data["run"] == {"steps": 1, "seed": 2}
    assert origin(layers, "run", "seed") == f"{path}:3"


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers()),
    st.dictionaries(st.sampled_from("abc"), st.integers()),
)
def test_merging_tables_of_plain_values_is_a_dictionary_update(
    one: dict[str, int], two: dict[str, int]
) -> None:
    overrides = [f"run.{key}={value}" for key, value in two.items()]
    assert load(data={"run": one}, overrides=overrides).data["run"] == {**one, **two}
