"""``bench compare`` and ``bench history``: tables, JSON, exit codes, and errors without a traceback."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.bench.asv_files import BASE, HEAD, MACHINE, Bench, around, pair, write
from tests.cli.conftest import Invoke

FLOPS = Bench("steps.Costs.track_flops", {"method": ["kfac", "sgd"], "network": ["mlp"]}, "flops")
STATE = Bench("structures.Members.track_state_bytes", {"family": ["dense"]}, "bytes")
TIME = Bench("steps.Time.time_step", {"method": ["kfac"]}, "seconds")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    base = [(FLOPS, [1e6, 2e6]), (STATE, [4096.0]), (TIME, [around(0.01, 0.05)])]
    head = [(FLOPS, [1.2e6, 2e6]), (STATE, [2048.0]), (TIME, [around(0.015, 0.05)])]
    return pair(tmp_path / "results", base, head)


def test_a_regression_is_exit_code_6_and_named(invoke: Invoke, folder: Path) -> None:
    result = invoke("bench", "compare", BASE, HEAD[:8], "--results", str(folder))
    assert result.exit_code == 6
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[1][0] == "worse"
    assert lines[1][1:3] == ["steps.Costs.track_flops(kfac,", "mlp)"]
    assert "+20 %" in result.stdout
    assert [line[0] for line in lines[1:]] == ["worse", "slower", "better"]
    assert "× 1.5 (" in result.stdout
    assert "error: 1 of 4 benchmarks got worse:\n  steps.Costs.track_flops(kfac, mlp)" in result.stderr


def test_the_other_way_round_is_an_improvement(invoke: Invoke, folder: Path) -> None:
    result = invoke("bench", "compare", HEAD, BASE, "--results", str(folder))
    assert result.exit_code == 6  # the state has grown
    assert "structures.Members.track_state_bytes(dense)" in result.stderr


def test_a_commit_is_equal_to_itself(invoke: Invoke, folder: Path) -> None:
    result = invoke("bench", "compare", BASE, BASE, "--results", str(folder))
    assert result.exit_code == 0
    assert result.stdout == "nothing changed\n"
    every = invoke("bench", "compare", BASE, BASE, "--results", str(folder), "--all")
    assert every.stdout.count("equal") == 4


def test_benchmarks_are_compared_by_name(invoke: Invoke, folder: Path) -> None:
    there = ("bench", "compare", BASE, HEAD, "--results", str(folder), "--bench")
    result = invoke(*there, "Members|sgd")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["better"]
    assert invoke(*there, "kfac").exit_code == 6
    for wrong, words in (("nothing", "no benchmark of these commits"), ("(", "no regular expression")):
        result = invoke(*there, wrong)
        assert result.exit_code == 2
        assert words in result.stderr


def test_a_comparison_is_one_json_document(invoke: Invoke, folder: Path) -> None:
    result = invoke("bench", "compare", BASE, HEAD, "--results", str(folder), "--json")
    assert result.exit_code == 6
    found = json.loads(result.stdout)
    assert (found["base"], found["head"]) == (BASE, HEAD)
    first = found["changes"][0]
    assert first["ratio"] == pytest.approx(1.2)
    assert first["case"] == {"method": "kfac", "network": "mlp"}
    assert (first["verdict"], first["confidence"]) == ("worse", "exact")


def test_git_names_commits(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        options = ["-c", "user.name=n", "-c", "user.email=e@localhost", "-C", str(tmp_path)]
        return subprocess.run(
            ["git", *options, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    hashes = []
    for name in ("one", "two"):
        git("commit", "-q", "--allow-empty", "-m", f"Commit {name}")
        hashes.append(git("rev-parse", "HEAD"))
        write(tmp_path / "results", hashes[-1], [(FLOPS, [1e6 * len(hashes), 1.0])])  # of one second
    monkeypatch.chdir(tmp_path)
    result = invoke("bench", "compare", "HEAD~1", "HEAD", "--results", "results")
    assert result.exit_code == 6, result.output
    assert f"{hashes[0][:8]} to {hashes[1][:8]}: 1 worse, 1 equal" in result.stderr
    document = json.loads(invoke("bench", "history", "--results", "results", "--json").stdout)
    assert [c["subject"] for c in document["commits"]] == ["Commit one", "Commit two"]


def test_an_unknown_commit_says_which_have_results(invoke: Invoke, folder: Path) -> None:
    result = invoke("bench", "compare", "no-such-branch", HEAD, "--results", str(folder))
    assert result.exit_code == 2
    assert '"no-such-branch" is no commit' in result.stderr
    assert BASE[:8] in result.stderr


def test_results_that_are_not_there_or_torn_are_an_error_without_a_traceback(
    invoke: Invoke, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = invoke("bench", "history", "--results", str(tmp_path / "none"))
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "asv run" in missing.stderr
    (folder / MACHINE / "torn.json").write_text("{")
    torn = invoke("bench", "compare", BASE, HEAD, "--results", str(folder))
    assert torn.exit_code == 1
    assert "torn.json:1:2" in torn.stderr
    nowhere = invoke("bench", "compare", BASE, HEAD)
    assert nowhere.exit_code == 2
    assert "--results" in nowhere.stderr


def test_a_commit_that_was_not_measured_there_says_how_to(
    invoke: Invoke, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asv.conf.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("curvlab.bench.commits._git", lambda folder, *words: "c" * 40)
    result = invoke("bench", "compare", BASE, "HEAD", "--results", str(folder))
    assert result.exit_code == 1
    assert f"printf '%s\\n' {'c' * 40} | asv run" in result.stderr


def test_a_commit_that_was_measured_in_part_is_measured_whole(
    invoke: Invoke, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left out of one of two would be told as new, and its regressions not at all."""
    (tmp_path / "asv.conf.json").write_text('{"results_dir": "results"}')
    write(folder, "c" * 40, [(STATE, [4096.0])])
    monkeypatch.chdir(tmp_path)
    asked: list[list[str]] = []

    def measured(where: Path, commits: list[str], machine: str, **_: object) -> None:
        asked.append(commits)
        write(folder, "c" * 40, [(FLOPS, [2e6, 2e6]), (STATE, [4096.0])])

    monkeypatch.setattr("curvlab.bench.measuring.measured", measured)
    result = invoke("bench", "compare", BASE, "c" * 40)
    assert asked == [["c" * 40]]
    assert result.exit_code == 6
    assert "steps.Costs.track_flops(kfac, mlp)" in result.stderr


def test_results_of_two_environments_do_not_compare(invoke: Invoke, folder: Path) -> None:
    write(folder, "d" * 40, [(FLOPS, [1.0, 1.0])], environment="virtualenv-py3.12")
    result = invoke("bench", "compare", BASE, "d" * 40, "--results", str(folder))
    assert result.exit_code == 1
    assert "another environment" in result.stderr


def test_history_is_a_table_of_what_changed(invoke: Invoke, folder: Path) -> None:
    result = invoke("bench", "history", "--results", str(folder))
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["benchmark", "first", "last", "change", "regressions"]
    assert len(rows) == 2
    assert "bbbbbbbb +20 %" in rows[0]
    assert "−50 %" in rows[1]
    assert "2 commits; 2 of 4 series shown" in result.stderr
    assert len(invoke("bench", "history", "--results", str(folder), "--all").stdout.splitlines()) == 5


def test_history_is_filtered(invoke: Invoke, folder: Path) -> None:
    chosen = invoke("bench", "history", "--results", str(folder), "--all", "--family", "dense")
    assert [line.split()[0] for line in chosen.stdout.splitlines()[1:]] == [
        "structures.Members.track_state_bytes(dense)"
    ]
    wrong = invoke("bench", "history", "--results", str(folder), "--method", "kfca")
    assert wrong.exit_code == 2
    assert 'Did you mean "kfac"' in wrong.stderr


def test_history_in_one_file_makes_the_same_page(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    one, two, kept = tmp_path / "one.html", tmp_path / "deep" / "two.html", tmp_path / "history.json"
    assert invoke("bench", "history", "--results", str(folder), "--html", str(one)).exit_code == 0
    kept.write_text(invoke("bench", "history", "--results", str(folder), "--json").stdout)
    assert invoke("bench", "history", "--results", str(kept), "--html", str(two)).exit_code == 0
    assert one.read_text() == two.read_text()


def test_a_page_that_cannot_be_written_is_an_error_without_a_traceback(
    invoke: Invoke, folder: Path, tmp_path: Path
) -> None:
    result = invoke("bench", "history", "--results", str(folder), "--html", str(tmp_path))
    assert result.exit_code == 2
    assert "--html" in result.stderr


def empty(folder: Path, commit: str) -> None:
    """What asv leaves behind when it dies before its first result."""
    write(folder, commit, [])


def test_after_a_run_that_died_before_its_first_result_commits_are_measured_anew(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    (tmp_path / "asv.conf.json").write_text('{"results_dir": "results"}')
    empty(folder, BASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("curvlab.bench.commits._git", lambda *_: "")
    monkeypatch.setattr("curvlab.bench.commits.resolve", lambda name, *_: name)
    asked: list[list[str]] = []

    def measured(where: Path, commits: list[str], machine: str, **_: object) -> None:
        asked.append(commits)
        if len(asked) > 1:  # the second run lives
            pair(folder, [(STATE, [4096.0])], [(STATE, [4096.0])])

    monkeypatch.setattr("curvlab.bench.measuring.measured", measured)
    dead = invoke("bench", "compare", BASE, HEAD)
    assert (dead.exit_code, dead.stdout) == (1, "")
    assert "asv ended without a result" in dead.stderr
    assert invoke("bench", "compare", BASE, HEAD).exit_code == 0
    assert asked == [[BASE, HEAD]] * 2


def test_of_results_that_were_named_a_run_that_died_is_an_error(invoke: Invoke, tmp_path: Path) -> None:
    empty(tmp_path / "results", BASE)
    empty(tmp_path / "results", HEAD)
    for command in (("compare", BASE, HEAD), ("history",)):
        result = invoke("bench", *command, "--results", str(tmp_path / "results"))
        assert (result.exit_code, result.stdout) == (1, "")
        assert "2 of asv's files are empty: it ended before its first result" in result.stderr


def test_a_comparison_is_appended_in_markdown_before_a_regression_is_told(
    invoke: Invoke, folder: Path, tmp_path: Path
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("above\n")
    result = invoke("bench", "compare", BASE, HEAD, "--results", str(folder), "--markdown", str(summary))
    assert result.exit_code == 6
    lines = summary.read_text().splitlines()
    assert lines[0] == "above"
    assert lines[1].startswith(f"### Benchmarks: {BASE[:8]} to {HEAD[:8]}: 1 worse")
    assert lines[3].startswith("| verdict | benchmark |")
    assert lines[5].startswith("| worse | steps.Costs.track_flops(kfac, mlp) |")


def test_a_reason_makes_a_regression_intended(
    invoke: Invoke, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asv.conf.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    intended = f"[[change]]\ncommit = '{HEAD[:9]}'\nbenchmarks = 'flops'\nwhy = 'More is done.'\n"
    (tmp_path / "intended.toml").write_text(intended)
    result = invoke("bench", "compare", BASE, HEAD, "--results", str(folder))
    assert result.exit_code == 0, result.stderr
    assert "More is done." in result.stdout
    (tmp_path / "intended.toml").write_text("[[change]]")
    torn = invoke("bench", "compare", BASE, HEAD, "--results", str(folder))
    assert (torn.exit_code, torn.stdout) == (1, "")
    assert "intended.toml: change 1: expected the keys" in torn.stderr
