"""Run folders that were damaged: each ends in a message or a correct resume, and none goes on as another run.

A run of eight steps is damaged, told to go on to twelve, and compared with one of twelve that was left alone.
A message leaves every file as it was.

    python -m tests.cli.test_damaged_runs 1000 0     flips as many bits, from that seed; counts the ends
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from curvlab import files
from curvlab.cli import run
from curvlab.cli.app import app
from curvlab.cli.app import words as words_of
from curvlab.cli.output import complain
from curvlab.errors import CurvlabError

CONFIG = """
[run]
name = "small"
steps = {steps}
seed = {seed}
log_every = 1
eval_every = 2
checkpoint_every = 3
keep = 3

[task]
use = "teacher-student"
hidden = [3]
size = 60
batch_size = 16

[method]
preconditioner = {{ use = "identity" }}
damping = {{ use = "constant" }}
step = {{ use = "rate", lr = 0.125 }}
on_update = [{{ use = "momentum", beta = 0.9 }}]
"""
ROOT = Path(__file__).parents[2]
NEWEST, BEFORE = "checkpoints/step-00000008", "checkpoints/step-00000006"
TENSORS, STATE = "tensors.safetensors", "state.json"


class Said(NamedTuple):
    code: int
    out: str
    err: str


def curvlab(*arguments: object) -> Said:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.exit_code, done.stdout, done.stderr)


class Runs(NamedTuple):
    """The undisturbed run of twelve steps, one of eight, and one of another seed."""

    whole: Path
    eight: Path
    other: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return trained(tmp_path_factory.mktemp("runs"))


def trained(out: Path) -> Runs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CURVLAB_PLUGINS", "")
        made = []
        for name, steps, seed in (("whole", 12, 0), ("eight", 8, 0), ("other", 8, 1)):
            (out / f"{name}.toml").write_text(CONFIG.format(steps=steps, seed=seed))
            said = curvlab("train", out / f"{name}.toml", "--out", out / name)
            assert said.code == 0, said.err
            made.append(next((out / name).iterdir()))
    return Runs(*made)


@pytest.fixture
def folder(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run of eight steps, as if it had been killed behind its last checkpoint."""
    monkeypatch.setenv("CURVLAB_PLUGINS", "")
    return shutil.copytree(runs.eight, tmp_path / runs.eight.name)


def called(command: Callable[..., None], *arguments: Any, **named: Any) -> Said:
    """A command's function, without the half of the time in which Typer reads all commands anew."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            command(*arguments, **named)
        except CurvlabError as error:
            complain(words_of(error))
            code = error.exit_code
    return Said(code, out.getvalue(), err.getvalue())


def resume(folder: Path) -> Said:
    return called(run.resume, folder, ["run.steps=12"])


def evaluate(folder: Path) -> Said:
    return called(run.evaluate, folder, as_json=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def is_the_same_run(folder: Path, whole: Path) -> bool:
    """Whether the last checkpoints have the same tensors, and the same plain values but for the clock."""
    last = "checkpoints/step-00000012"
    mine, other = (json.loads((f / last / STATE).read_text()) for f in (folder, whole))
    for document in (mine, other):
        del document["crc32"], document["state"]["progress"]["seconds"]
        document["state"]["progress"]["events"].clear()
    return mine == other and (folder / last / TENSORS).read_bytes() == (whole / last / TENSORS).read_bytes()


def require_message(said: Said, words: str) -> None:
    """One message, no traceback, and it says ``words``."""
    assert said.code in (1, 2, 3), said
    assert "Traceback" not in said.err
    assert re.search(words, said.err), said.err


# kinds of damage


def flip(name: str, place: float = 0.5, bit: int = 2) -> Callable[[Path, Runs], None]:
    def change(folder: Path, runs: Runs) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(place * len(data))] ^= 1 << bit
        (folder / name).write_bytes(data)

    return change


def truncate(name: str) -> Callable[[Path, Runs], None]:
    def change(folder: Path, runs: Runs) -> None:
        os.truncate(folder / name, (folder / name).stat().st_size // 2)

    return change


def lose(*names: str) -> Callable[[Path, Runs], None]:
    def change(folder: Path, runs: Runs) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def edit(name: str, pattern: str, new: str) -> Callable[[Path, Runs], None]:
    def change(folder: Path, runs: Runs) -> None:
        text, count = re.subn(pattern, new, (folder / name).read_text(), count=1)
        assert count == 1
        (folder / name).write_text(text)

    return change


def write(name: str, data: bytes) -> Callable[[Path, Runs], None]:
    def change(folder: Path, runs: Runs) -> None:
        (folder / name).write_bytes(data)

    return change


def state(
    edit_: Callable[[dict[str, Any]], object], form: int = 2, where: str = NEWEST
) -> Callable[[Path, Runs], None]:
    """Edit the plain values of a checkpoint and give the file the checksum that belongs to it."""

    def change(folder: Path, runs: Runs) -> None:
        path = folder / where / STATE
        document = json.loads(path.read_text())
        del document["crc32"]
        document["format"] = form
        edit_(document["state"])
        body = json.dumps(document, indent=1).removeprefix("{\n").encode()
        path.write_bytes((b'{"crc32": %d,\n' % zlib.crc32(body) if form > 1 else b"{\n") + body)

    return change


def as_format_1(edit_: Callable[[dict[str, Any]], object]) -> Callable[[Path, Runs], None]:
    """A checkpoint as it was written before there were checksums of ``state.json``."""

    def older(plain: dict[str, Any]) -> None:
        del plain["threads"], plain["configuration"]
        edit_(plain)

    return state(older, 1)


def foreign_checkpoint(folder: Path, runs: Runs) -> None:
    shutil.rmtree(folder / NEWEST)
    shutil.copytree(runs.other / NEWEST, folder / NEWEST)


def renamed_checkpoint(folder: Path, runs: Runs) -> None:
    (folder / NEWEST).rename(folder / "checkpoints" / "step-00000010")


def every_checkpoint(folder: Path, runs: Runs) -> None:
    for path in (folder / "checkpoints").glob("step-*"):
        flip(str(path.relative_to(folder) / TENSORS))(folder, runs)


def checkpoints_are_a_file(folder: Path, runs: Runs) -> None:
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").touch()


def both(*changes: Callable[[Path, Runs], None]) -> Callable[[Path, Runs], None]:
    def change(folder: Path, runs: Runs) -> None:
        for one in changes:
            one(folder, runs)

    return change


#: what goes on as the undisturbed run, and what standard error says meanwhile
RESUMED: Mapping[str, tuple[Callable[[Path, Runs], None], str]] = {
    "nothing": (lambda folder, runs: None, "^step"),
    "newest tensors, a bit": (
        flip(f"{NEWEST}/{TENSORS}", 0.9),
        "step-00000008: the checksum of tensors.*step-00000006",
    ),
    "newest tensors, their header": (
        flip(f"{NEWEST}/{TENSORS}", 0.01),
        "step-00000008: the checksum of tensors.safetensors is wrong",
    ),
    "newest state, a bit": (flip(f"{NEWEST}/{STATE}"), "step-00000008: the checksum of state.json is wrong"),
    "newest state, its checksum": (
        flip(f"{NEWEST}/{STATE}", 0.0, 0),
        "step-00000008: state.json is not a complete JSON object",
    ),
    "newest state, sampler.drawn": (
        edit(f"{NEWEST}/{STATE}", r'"drawn": \d+', '"drawn": 3'),
        "the checksum of state.json is wrong",
    ),
    "newest tensors, truncated": (truncate(f"{NEWEST}/{TENSORS}"), "tensors.safetensors has .* bytes"),
    "newest state, truncated": (truncate(f"{NEWEST}/{STATE}"), "the checksum of state.json is wrong"),
    "newest tensors, lost": (lose(f"{NEWEST}/{TENSORS}"), "tensors.safetensors is missing"),
    "newest state, a foreign document": (write(f"{NEWEST}/{STATE}", b"[1]"), "expected a JSON object"),
    "newest state, nested too deeply": (write(f"{NEWEST}/{STATE}", b"[" * 100_000), "nested too deeply"),
    "newest checkpoint, renamed": (renamed_checkpoint, "says step 8, and the folder's name says 10"),
    "newest two, a bit": (both(flip(f"{NEWEST}/{STATE}"), flip(f"{BEFORE}/{TENSORS}")), "step-00000003"),
    "newest state, of format 1": (as_format_1(lambda plain: None), "00000008 cannot be verified: format 1"),
    "checkpoints, lost": (lose("checkpoints"), "^step"),
    "latest, a bit": (flip("checkpoints/latest"), "^step"),
    "manifest, another number of threads": (
        edit("manifest.json", r'"threads": \d+', '"threads": 7'),
        "^step",
    ),
    "manifest, lost": (lose("manifest.json"), "^step"),
    "metrics, a torn last line": (truncate("metrics.jsonl"), "^step"),
    "metrics and events, lost": (lose("metrics.jsonl", "events.jsonl"), "^step"),
    "summary, lost": (lose("summary.json"), "^step"),
    "config, a bit": (flip("config.toml"), "^step"),
}

#: what is refused, and in which words
REFUSED: Mapping[str, tuple[Callable[[Path, Runs], None], str]] = {
    "every checkpoint, a bit": (every_checkpoint, "no whole checkpoint in .*step-00000008.*step-00000003"),
    "a checkpoint of another run": (foreign_checkpoint, "another configuration: seed was 1 and is 0"),
    "checkpoints, a file": (checkpoints_are_a_file, "checkpoints cannot be read: a file is in the place"),
    "state, a key missing": (state(lambda plain: plain.pop("sampler")), "missing or unknown.*: sampler"),
    "state, a foreign key": (state(lambda plain: plain.update(more=1)), "missing or unknown.*: more"),
    "state, progress without a key": (
        state(lambda plain: plain["progress"].pop("step")),
        "progress.*unknown entries: step",
    ),
    "state, progress with a text": (state(lambda plain: plain["progress"].update(step="x")), "progress.step"),
    "state, a foreign key of the optimizer": (
        state(lambda plain: plain["optimizer"].update(x=1)),
        "malformed entries: x",
    ),
    "state, no groups": (state(lambda plain: plain["optimizer"].pop("groups")), "malformed entries: groups"),
    "state, sampler.drawn a text": (
        state(lambda plain: plain["sampler"].update(drawn="x")),
        "'drawn'.*got 'x'",
    ),
    "state, of format 1 without a key": (
        as_format_1(lambda plain: plain.pop("strides")),
        "unknown.*: strides",
    ),
    "state, threads of a million": (
        state(lambda plain: plain.update(threads=10**6)),
        "number of threads is 1000000, expected 1 to 1024",
    ),
    "resolved, a digit": (
        edit("resolved.toml", r"lr = 0\.125", "lr = 0.325"),
        "resolved.toml does not match its checksum",
    ),
    "resolved, a bit": (flip("resolved.toml", 0.8), "resolved.toml does not match its checksum"),
    "resolved, truncated": (truncate("resolved.toml"), "resolved.toml does not match its checksum"),
    "resolved, not UTF-8": (write("resolved.toml", b"a = '\xff'\n"), "resolved.toml is damaged"),
    "resolved, lost": (lose("resolved.toml"), "has no resolved.toml"),
    "resolved, without its checksum and edited": (
        both(edit("resolved.toml", r"# crc32.*\n", ""), edit("resolved.toml", r"lr = 0\.125", "lr = 0.325")),
        "another configuration: method.step.lr was 0.125 and is 0.325",
    ),
    "manifest, truncated": (truncate("manifest.json"), "manifest.json is damaged.*delete it"),
    "metrics, a line": (
        edit("metrics.jsonl", r'"step": 2', '"st\x00p": 2'),
        r"metrics.jsonl:\d+: the line is damaged",
    ),
    "metrics, a line of another kind": (
        edit("metrics.jsonl", r'"kind": "step"', '"kind": "stop"'),
        r"jsonl:1: .*kind",
    ),
    "events, a line": (write("events.jsonl", b"{\n"), "events.jsonl:1: the line is damaged"),
    "summary, truncated": (truncate("summary.json"), "summary.json is damaged.*delete it"),
    "config, lost": (lose("config.toml"), "config.toml cannot be written: no such file"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_what_can_be_repaired_goes_on_as_the_run_that_was_left_alone(
    name: str, runs: Runs, folder: Path
) -> None:
    damage, words = RESUMED[name]
    damage(folder, runs)
    evaluated = evaluate(folder)
    said = resume(folder)
    assert said.code == 0, said.err
    assert re.search(words, said.err, re.MULTILINE | re.DOTALL), said.err
    assert is_the_same_run(folder, runs.whole)
    if "checkpoints, lost" not in name:
        found = json.loads(evaluated.out)
        assert bool(found["damaged"]) == ("warning" in evaluated.err)
        if (runs.whole / f"checkpoints/step-{found['step']:08d}").exists() or found["step"] % 2 == 0:
            lines = map(json.loads, (runs.whole / "metrics.jsonl").read_text().splitlines())
            (line,) = (v for v in lines if (v["kind"], v["step"]) == ("eval", found["step"]))
            assert found["metrics"] == {k: line[k] for k in found["metrics"]}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_repaired_is_refused_in_words_and_left_as_it_was(
    name: str, runs: Runs, folder: Path
) -> None:
    damage, words = REFUSED[name]
    damage(folder, runs)
    before = contents(folder)
    require_message(resume(folder), words)
    assert contents(folder) == before
    evaluated = evaluate(folder)
    assert evaluated.code in (0, 1, 2, 3)
    assert "Traceback" not in evaluated.err
    assert contents(folder) == before


def after_a_flipped_bit(folder: Path, runs: Runs, name: str, chance: random.Random) -> str:
    """What becomes of the run, in a word: it goes on as the same, or is refused in words."""
    place, bit = chance.random(), chance.randrange(8)
    flip(name, place, bit)(folder, runs)
    said = resume(folder)
    if said.code == 0:
        assert is_the_same_run(folder, runs.whole), (name, place, bit)
        return "resumed"
    require_message(said, re.escape(folder.name))
    return "refused"


def test_any_bit_of_any_file_ends_in_a_message_or_in_the_same_run(runs: Runs, folder: Path) -> None:
    chance = random.Random(20261130)
    for name in (n for n, data in contents(folder).items() if data):
        copy = shutil.copytree(folder, folder.with_name(f"flipped-{folder.name}"))
        end = after_a_flipped_bit(copy, runs, name, chance)
        assert end == "resumed" or not name.startswith("checkpoints"), name
        shutil.rmtree(copy)


# what happens to a folder while the run trains


@pytest.fixture
def place(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the configuration of the undisturbed run."""
    monkeypatch.setenv("CURVLAB_PLUGINS", "")
    monkeypatch.chdir(tmp_path)
    shutil.copy(runs.whole.parent.parent / "whole.toml", "whole.toml")
    return tmp_path


@pytest.mark.parametrize("limit", [0, 200, 1000, 2500])
def test_a_file_that_may_not_grow_ends_the_run_in_words_and_it_goes_on_when_it_may(
    limit: int, runs: Runs, place: Path
) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    files.require_temporary_folder()  # found once and remembered: before the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        said = curvlab("train", "whole.toml", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    require_message(
        said, r"cannot be written: the file would be larger than this process may write.*ulimit -f"
    )
    left = list(Path("runs").iterdir())
    assert not list(Path("runs").rglob("*.partial"))
    for folder in left:
        assert curvlab("resume", folder, "--quiet").code == 0
        assert is_the_same_run(folder, runs.whole)
    assert bool(left) == (limit >= 1000), "a folder without its configuration is no run"


@pytest.mark.parametrize(
    ("after", "code", "words"),
    [
        (0, errno.ENOSPC, "the disk is full"),
        (1, errno.EDQUOT, "quota"),
        (2, errno.EROFS, "read-only"),
        (3, errno.EACCES, "permission denied"),
        (4, errno.EIO, "Input/output error"),
    ],
)
def test_what_the_disk_refuses_is_said_in_words(
    after: int, code: int, words: str, runs: Runs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first atomic write of a resumed run, and later ones, checkpoints included."""
    left, flush = [after], files.flush

    def refused(path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        flush(path)

    monkeypatch.setattr(files, "flush", refused)
    monkeypatch.setattr("curvlab.engine.checkpoint.flush", refused)
    require_message(resume(folder), rf"{re.escape(str(folder))}\S* cannot be written: .*{words}")
    monkeypatch.undo()
    monkeypatch.setenv("CURVLAB_PLUGINS", "")
    assert resume(folder).code == 0
    assert is_the_same_run(folder, runs.whole)


def test_a_run_is_evaluated_where_nothing_may_be_written(
    runs: Runs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert curvlab("eval", folder).code == 0
        if os.geteuid() != 0:  # root may write all the same
            require_message(resume(folder), "permission denied")
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("whole.toml", "whole.toml cannot be written: a file is in the place of a folder"),
        ("whole.toml/runs", "a file is in the place of a folder"),
        ("n" * 300, "the name is too long"),
        ("/proc/curvlab/runs", "/proc/curvlab/runs cannot be written"),
    ],
)
def test_a_place_that_cannot_hold_runs_is_named(out: str, words: str, place: Path) -> None:
    for more in ((), ("--resume",)):
        said = curvlab("train", "whole.toml", "--quiet", "--out", out, *more)
        require_message(said, words.replace("written", "(written|read)"))
        assert said.code == 1
    for command in ("resume", "eval"):
        require_message(curvlab(command, out), "is not a folder|too long|file is in the place")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("run.threads=1000000", "threads = 1000000 must be ≥ 1 and ≤ 1024"),
        (f"run.name={'n' * 201}", "the name has 201 bytes, at most 200 are allowed"),
        *(
            (f"precision.device={name}", f"'{name}' is not available")
            for name in ("mps", "meta", "xla", "cuda:99")
        ),
    ],
)
def test_what_no_machine_or_not_this_one_has_is_a_fault_of_the_configuration(
    setting: str, words: str, place: Path
) -> None:
    if setting.endswith("mps"):
        import torch

        if torch.backends.mps.is_available():
            pytest.skip("mps is there")
    for command in (("train", "whole.toml"), ("config", "check", "whole.toml")):
        said = curvlab(*command, "--set", setting)
        require_message(said, words)
        assert said.code == 3
    assert not Path("runs").exists()


def test_a_model_that_does_not_fit_into_memory_is_said_to_be_too_large(place: Path) -> None:
    said = curvlab("train", "whole.toml", "--quiet", "--set", f"task.hidden=[{2**24}, {2**24}]")
    require_message(said, "^error: out of memory: an allocation failed")
    assert said.code == 1
    assert not Path("runs").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems take UTF-8 alone")
def test_paths_that_are_not_utf_8_are_paths_as_others(runs: Runs, place: Path) -> None:
    out = os.fsdecode(b"r\xff")
    shutil.copy("whole.toml", f"{out}.toml")
    said = curvlab("train", f"{out}.toml", "--json", "--quiet", "--out", out, "--set", "run.steps=8")
    folder = Path(json.loads(said.out)["folder"])
    assert (said.code, folder.parent) == (0, Path(out))
    assert curvlab("eval", folder, "--json").code == 0
    assert curvlab("resume", folder, "--quiet", "--set", "run.steps=12").code == 0
    assert is_the_same_run(folder, runs.whole)
    task = curvlab("train", "whole.toml", "--out", out, "--set", f'task.use="{out}"')
    require_message(task, "task")
    done = subprocess.run(
        [sys.executable, "-m", "curvlab", "eval", os.fsencode(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def flip_bits(count: int, seed: int) -> None:
    """The long version of the test of bits: any bit of any file, each time in a fresh copy."""
    import tempfile
    from collections import Counter

    os.environ["CURVLAB_PLUGINS"] = ""
    chance, ends = random.Random(seed), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as out:
        made = trained(Path(out))
        names = [name for name, data in contents(made.eight).items() if data]
        for _ in range(count):
            copy = shutil.copytree(made.eight, Path(out) / "flipped" / made.eight.name)
            name = chance.choice(names)
            ends[name, after_a_flipped_bit(copy, made, name, chance)] += 1
            shutil.rmtree(copy)
    for (name, end), times in sorted(ends.items()):
        print(f"{times:5}  {end}  {name}")


if __name__ == "__main__":
    flip_bits(int(sys.argv[1]), int(sys.argv[2]))
