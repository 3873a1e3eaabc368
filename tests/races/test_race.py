"""A race tries as many settings for each method, measures on other seeds, and survives being killed."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from curvlab.cli.app import app
from curvlab.comparing.outline import outline, runs_below
from curvlab.comparing.record import Record
from curvlab.comparing.target import Target
from curvlab.config import load
from curvlab.errors import ConfigError
from curvlab.races.race import Race
from curvlab.races.significance import rank_sum_p
from curvlab.trials.space import values_of
from tests.browser import is_installed, on_a_phone

RACE = """
[race]
budget = 2
seeds = [1, 2, 3]

[run]
steps = 10
eval_every = 1
checkpoint_every = 2
threads = 1

[tasks.bowl]
target = "val_loss<=0.5"
task = { use = "quadratic", dimension = 5, condition = 10.0 }

[tasks.valley]
target = "val_loss<=1e-9"
task = { use = "quadratic", dimension = 5, condition = 100.0 }

[methods.heavy]
method = { use = "sgd", lr = 0.5 }
over.method.momentum = [0.99, 0.3]

[methods.plain]
method = { use = "sgd", lr = 0.01 }
"""


def race(*arguments: object) -> Result:
    done = CliRunner().invoke(app, ["race", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def timeless(document: Any) -> Any:
    """A document without what a clock measured and where runs are."""
    if isinstance(document, dict):
        kept = {k: v for k, v in document.items() if k not in ("seconds", "run", "race", "page")}
        return {key: timeless(value) for key, value in kept.items()}
    return [timeless(one) for one in document] if isinstance(document, list) else document


def result(folder: str) -> Any:
    done = race("race.toml", "--out", folder, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def steps_to(target: str, run: Path) -> float:
    reached = Record.of(outline(run)).reached(Target.of(target))
    return float("inf") if reached is None else reached.step


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "race.toml").write_text(RACE)
    return tmp_path


def test_a_race_killed_at_a_random_moment_and_run_again_gives_the_same_table_and_page(there: Path) -> None:
    command = [sys.executable, "-m", "curvlab", "race", "race.toml", "--out", "torn", "--quiet"]
    runs = random.randint(1, 14)
    with subprocess.Popen(command) as process:
        while len(list((there / "torn").glob("*/*/*/*"))) < runs:
            assert process.poll() is None, "the race ended before it was killed"
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
    torn, whole = result("torn"), result("whole")
    assert timeless(torn) == timeless(whole)
    follows_the_rules(there / "whole", whole)
    assert result("torn") == torn  # all read, nothing trained
    shows_it_all(there / "torn" / "race.html", there)


def follows_the_rules(folder: Path, document: Any) -> None:
    """The choice is the best of the tuning runs; the standings are those of runs with other seeds."""
    tried = {run.name.split("-")[0] for run in runs_below(folder / "tuning" / "bowl" / "heavy")}
    assert tried == {"setting000", "setting001"}
    assert not (folder / "tuning" / "bowl" / "plain").exists()  # one setting: nothing to choose
    for task in document["tasks"]:
        (runs,) = (one for one in task["standings"] if one["method"] == "heavy")
        steps = [
            steps_to(
                task["target"], next((folder / "tuning" / task["task"] / "heavy").glob(f"setting00{k}-*"))
            )
            for k in range(2)
        ]
        chosen = runs["settings"]["method.momentum"]
        if steps[0] != steps[1]:
            assert chosen == [0.99, 0.3][steps.index(min(steps))]
        for place in task["standings"]:
            finals = [Path(run["run"]) for run in place["runs"]]
            assert [outline(run).seed for run in finals] == [1, 2, 3]
            reached = [steps_to(task["target"], run) for run in finals]
            assert place["reached"] == sum(value < float("inf") for value in reached)
            if place["steps"] is not None:
                assert place["steps"]["median"] == (sorted(reached)[1] if place["reached"] > 1 else None)
    bowl, valley = document["tasks"]
    assert [place["method"] for place in bowl["standings"]] == ["heavy", "plain"]
    assert bowl["standings"][0]["p"] is None
    leading = [steps_to(bowl["target"], Path(run["run"])) for run in bowl["standings"][0]["runs"]]
    assert bowl["standings"][1]["p"] == rank_sum_p(leading, [float("inf")] * 3)  # of one other: not adjusted
    assert [place["p"] for place in valley["standings"]] == [None, None]  # nobody reached it
    assert document["ratios"]["heavy"] == [1.0, None]


#: what the page of a race shows
SHOWN = """
const chosen = (id) => page.getElementById(id).dataset.curves;
return {
  overflow: overflow(), canvas: count("canvas"), profiles: chosen("race-profile"), curves: chosen("chart"),
  tables: words("#race-tables h3"), methods: words("#race-tables tbody th"),
  legend: words("#race-legend > span"),
};"""


def shows_it_all(page: Path, folder: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "default-src &#x27;none&#x27;" in text
    if not is_installed():
        return
    found = on_a_phone(text, SHOWN, folder)
    assert found["tables"] == ["bowl: to val_loss<=0.5", "valley: to val_loss<=1e-09"]
    assert sorted(found["methods"]) == ["heavy", "heavy", "plain", "plain"]
    assert found["legend"] == ["heavy", "plain"]
    assert (found["overflow"], found["canvas"], found["profiles"], found["curves"]) == (0, 2, "2", "2")


def test_every_method_gets_the_budget_of_settings_or_all_that_it_has(there: Path) -> None:
    text = RACE.replace("momentum = [0.99, 0.3]", "lr = { low = 0.1, high = 1.0, log = true }")
    (there / "race.toml").write_text(text.replace("budget = 2", "budget = 7"))
    drawn = Race.of(load("race.toml"), "race")
    assert [len(one.points) for one in drawn.entrants] == [7, 1]
    rates = [values_of(point)["method.lr"] for point in drawn.entrants[0].points]
    assert len(set(rates)) == 7
    assert all(0.1 <= rate <= 1.0 for rate in rates)
    assert drawn.runs == (2 * 7, 2 * 2 * 3)
    assert race("race.toml", "--dry-run").stdout.endswith(
        "\n14 runs to choose settings and 12 runs to measure, in races/race\n"
    )
    assert not (there / "races").exists()


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        (("seeds = [1, 2, 3]", "seeds = [0, 1]"), "seeds", "seeds 0 are also tuning_seeds"),
        (("budget = 2\n", ""), "[race]", "budget"),
        (('target = "val_loss<=0.5"', ""), "[tasks.bowl]", "the target of task bowl is missing"),
        (("val_loss<=0.5", "val_loss=0.5"), "target", 'expected "metric<=value"'),
        (("lr = 0.01", "lr = -1.0"), 'method = { use = "sgd", lr = -1.0', "lr"),
        (("0.99, 0.3", "0.99, 3.0"), "over", "momentum"),
        (("over.method.momentum", "over.run.steps"), "over", "run.steps cannot differ between settings"),
        (
            ("[methods.plain]", "[methods.plain]\nrun.steps = 99"),
            "run",
            "method plain cannot have a table run",
        ),
        (("condition = 10.0", "condition = 0.1"), "task", "condition"),
        (("[methods.plain]", '[methods."../plain"]'), '[methods."../plain"]', "cannot be a folder's name"),
    ],
)
def test_a_fault_is_found_before_the_first_run_at_its_line(
    there: Path, change: tuple[str, str], where: str, said: str
) -> None:
    text = RACE.replace(*change)
    (there / "race.toml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        Race.of(load("race.toml"), "race")
    lines = [text.splitlines()[fault.line - 1] for fault in caught.value.faults if fault.line]
    assert lines
    assert all(line.startswith(where) for line in lines)
