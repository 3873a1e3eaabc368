"""What runs reached and when, from folders whose numbers are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from curvlab.comparing.comparison import Comparison, Spread, compared
from curvlab.comparing.configurations import differences
from curvlab.comparing.outline import outline, runs_below
from curvlab.comparing.record import Counter, Record
from curvlab.comparing.target import Target
from curvlab.comparing.terminal import HEIGHT, drawing
from curvlab.errors import CurvlabError, UsageError
from tests.comparing.made import made


def of(folder: Path, target: str | None = None, axis: str = "steps") -> Comparison:
    outlines = [outline(path) for path in runs_below(folder)]
    return compared(outlines, None if target is None else Target.of(target), axis)  # type: ignore[arg-type]


def test_seeds_are_one_configuration_and_a_run_that_misses_the_target_is_infinite(
    tmp_path: Path,
) -> None:
    made(tmp_path / "a0", [3.0, 2.0, 1.0], seed=0)
    made(tmp_path / "a1", [1.5, 1.2, 1.1], seed=1)
    made(tmp_path / "a2", [9.0, 8.0, 7.0], seed=2)
    made(tmp_path / "b0", [4.0, 0.5, 0.6], method={"use": "sgd", "lr": 0.2})
    (task,) = of(tmp_path, "val_loss<=2").tasks
    second, first = task.rows
    assert [(second.label, second.count), (first.label, first.count)] == [
        ("sgd lr=0.1", 2),
        ("sgd lr=0.2", 1),
    ]
    assert second.to_target("steps") == Spread(20.0, 10.0, math.inf)
    assert second.to_target("examples") == Spread(640.0, 320.0, math.inf)
    assert second.to_target("seconds") == Spread(10.0, 5.0, math.inf)
    assert second.best_values == Spread(1.1, 1.0, 7.0)
    assert first.best == [(0.5, 20.0)]
    assert first.differs == {"method.lr": 0.2}
    (nearly,) = of(tmp_path, "val_loss<=0.55").tasks
    assert [row.to_target("steps") for row in nearly.rows] == [Spread(20.0, 20.0, 20.0), None]


def test_without_a_target_it_is_what_the_typical_run_of_every_configuration_reaches(tmp_path: Path) -> None:
    made(tmp_path / "a0", [3.0, 2.0], seed=0)
    made(tmp_path / "a1", [3.0, 1.0], seed=1)
    made(tmp_path / "a2", [None, None], seed=2)
    made(tmp_path / "b", [5.0, 0.5], method={"use": "adamw"})
    (task,) = of(tmp_path).tasks
    assert task.target == Target("val_loss", 1.5)
    assert not task.chosen
    made(tmp_path / "c", [0.7, 0.9], method={"use": "sgd", "lr": 1.0}, metric="val_accuracy")
    (task,) = compared([outline(tmp_path / "c")], None, "steps").tasks
    assert (task.target, task.rows[0].to_target("steps")) == (
        Target("val_accuracy", 0.9, True),
        Spread(20.0, 20.0, 20.0),
    )


def test_rows_are_sorted_by_the_axis_and_those_that_never_reach_it_by_their_best_value(
    tmp_path: Path,
) -> None:
    made(tmp_path / "late", [3.0, 1.0], method={"use": "late"}, every=10)
    made(tmp_path / "soon", [1.0, 1.0], method={"use": "soon"}, every=10)
    made(tmp_path / "worse", [9.0, 8.0], method={"use": "worse"})
    made(tmp_path / "never", [9.0, 4.0], method={"use": "never"})
    (task,) = of(tmp_path, "val_loss<=1").tasks
    assert [row.method for row in task.rows] == ["soon", "late", "never", "worse"]


def test_product_examples_are_summed_over_steps_and_marked_where_some_were_not_logged(tmp_path: Path) -> None:
    folder = made(tmp_path / "hf", [3.0, 1.0], products=7)
    record = Record.of(outline(folder))
    reached = record.reached(Target("val_loss", 1.0))
    assert reached is not None
    assert (reached.product_examples, reached.exact) == (140.0, True)
    path = folder / "metrics.jsonl"
    kept = [
        line for k, line in enumerate(path.read_text().splitlines(True)) if '"eval"' in line or k % 5 == 0
    ]
    path.write_text("".join(kept))
    thinned = Record.of(outline(folder)).reached(Target("val_loss", 1.0))
    assert thinned is not None
    assert thinned.product_examples == pytest.approx(140.0)
    assert not thinned.exact


def test_a_counter_interpolates_between_steps_and_goes_on_at_the_mean_rate() -> None:
    counter = Counter.through([(10, 100), (20, 300)])
    assert [counter.at(step) for step in (0, 5, 10, 15, 20, 40)] == [0, 50, 100, 200, 300, 600]
    assert math.isnan(Counter.through([]).at(3))
    assert Counter.through([]).at(0) == 0


def test_different_parts_are_told_apart_by_their_names_and_the_same_part_by_its_settings() -> None:
    shared = {"task": {"use": "toy"}, "run": {"seed": 1, "name": "x", "steps": 5}}
    configurations = [
        {**shared, "method": {"use": "a", "lr": 1.0, "inner": [{"use": "m", "beta": 0.9}]}},
        {
            **shared,
            "method": {"use": "a", "lr": 2.0, "inner": [{"use": "m", "beta": 0.9}]},
            "run": {"seed": 2, "steps": 5},
        },
        {**shared, "method": {"use": "b", "rate": 3.0}},
        {**shared, "method": {"use": "b", "rate": 3.0}, "run": {"steps": 6}},
    ]
    assert differences(configurations) == [
        {"run.steps": 5, "method.use": "a", "method.lr": 1.0},
        {"run.steps": 5, "method.use": "a", "method.lr": 2.0},
        {"run.steps": 5, "method.use": "b"},
        {"run.steps": 6, "method.use": "b"},
    ]


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "killed": (lambda f: (f / "summary.json").unlink(), "unfinished", "curvlab resume"),
    "manifest": (lambda f: (f / "manifest.json").write_text("{"), "damaged", "manifest.json is damaged"),
    "resolved": (lambda f: (f / "resolved.toml").write_text("= 3"), "damaged", "resolved.toml is damaged"),
    "no resolved": (lambda f: (f / "resolved.toml").unlink(), "damaged", "no resolved.toml"),
    "metrics": (lambda f: (f / "metrics.jsonl").write_text("{}\nfoo\n{}\n"), "damaged", "metrics.jsonl:2"),
    "no metrics": (lambda f: (f / "metrics.jsonl").unlink(), "damaged", "no metrics"),
    "diverged": (
        lambda f: (f / "summary.json").write_text('{"exit_reason": "diverged", "message": "at step 3"}'),
        "diverged",
        "at step 3",
    ),
}


@pytest.mark.parametrize(("damage", "state", "words"), BROKEN.values(), ids=BROKEN)
def test_a_run_that_is_not_whole_is_listed_with_what_is_wrong(
    damage: Callable[[Path], object], state: str, words: str, tmp_path: Path
) -> None:
    made(tmp_path / "good", [1.0])
    damage(made(tmp_path / "odd", [1.0], seed=1))
    found = (
        of(tmp_path)
        if (tmp_path / "odd" / "metrics.jsonl").exists()
        else compared([outline(tmp_path / "good"), outline(tmp_path / "odd")], None, "steps")
    )
    (troubled,) = found.troubled
    assert troubled.path.name == "odd"
    assert state in (troubled.state, "damaged")
    assert words in troubled.trouble
    assert sum(len(row.runs) for row in found.tasks[0].rows) == (1 if state == "damaged" else 2)


def test_if_no_run_can_be_read_the_error_says_why(tmp_path: Path) -> None:
    folder = made(tmp_path / "odd", [1.0])
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(CurvlabError, match=r"none of 1 runs can be compared: .*manifest\.json"):
        of(tmp_path)


@pytest.mark.parametrize(
    "text", ["val_loss", "val_loss<0.1", "val_loss<=x", "<=3", "val_loss<=nan", "a<=1<=2"]
)
def test_a_target_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected metric<=value"):
        Target.of(text)


def test_runs_on_different_machines_are_noted(tmp_path: Path) -> None:
    made(tmp_path / "a", [1.0])
    made(tmp_path / "b", [1.0], seed=1, manifest={"threads": 2})
    assert of(tmp_path).notes == ["the runs differ in threads (1, 2): compare their seconds with care"]


def test_a_drawing_shows_each_curve_where_it_is(tmp_path: Path) -> None:
    made(tmp_path / "a", [1.0, 1.0], method={"use": "a"})
    made(tmp_path / "b", [100.0, 10.0], method={"use": "b"})
    (task,) = of(tmp_path).tasks
    title, *lines = drawing(task, "steps", 60)
    assert title.strip() == "val_loss over steps, logarithmic"
    assert len(lines) == HEIGHT + 2
    assert lines[0].startswith("     100 │")
    assert "b" in lines[0]
    assert lines[HEIGHT - 1].count("a") > 20
    assert lines[-1].endswith("20")
    assert max(map(len, lines)) <= 60
    assert drawing(task, "steps", 15) == []  # too narrow for anything
