"""Whatever plugins do, every command does its work, and says which plugin is broken, where and why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from curvlab.engine.broadcast import Broadcast
from curvlab.protocols.report import Event, Reporter
from curvlab.registry import discover
from curvlab.registry.lifecycle import run_listeners
from curvlab.registry.loader import candidates
from tests.registry.broken_plugins import (
    METHODS,
    PLUGINS,
    RAISING_HOOKS,
    UNREADABLE,
    hook,
    mod,
    write_all,
    write_one,
)
from tests.registry.sites import write_distribution

ROOT = Path(__file__).parents[2]

CONFIG = """
[run]
steps = 2
[task]
use = "quadratic"
[method]
preconditioner = "identity"
damping = "constant"
step = { use = "mine", lr = 0.1 }
"""


#: every command that lists, checks or runs; FILE and OTHER are configurations, RUNS a folder
COMMANDS = {
    name: command.split()
    for name, command in {
        "plugins": "plugins list --json",
        "plugins as text": "plugins list",
        "methods": "methods --json",
        "steps": "parts step --json",
        "tasks": "tasks --json",
        "schema": "config schema",
        "check": "config check FILE",
        "check a part that exits": "config check OTHER",
        "train": "train FILE --out RUNS --json",
    }.items()
}


@dataclass(frozen=True)
class Done:
    """What a command returned and printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document that it printed; its failure is the test's."""
        assert self.code == 0, self.err
        return json.loads(self.out)


@dataclass(frozen=True)
class Everything:
    """What every command did while every broken plugin was installed."""

    runs: Path
    done: Mapping[str, Done]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    """A site with every broken plugin and a good one, and all commands in it."""
    site, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    names = ",".join(write_all(site))
    places = {"FILE": work / "c.toml", "OTHER": work / "other.toml", "RUNS": work / "runs"}
    places["FILE"].write_text(CONFIG)
    places["OTHER"].write_text(CONFIG.replace('"mine"', '"exiting"'))
    asked = [[str(places.get(word, word)) for word in command] for command in COMMANDS.values()]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CURVLAB")}
    path = os.pathsep.join([str(ROOT), str(site)])
    subprocess.run(
        [sys.executable, "-m", "tests.registry.commands", str(work / "done.json")],
        env={**clean, "PYTHONPATH": path, "CURVLAB_PLUGINS": names},
        cwd=ROOT,
        input=json.dumps(asked),
        text=True,
        check=True,
    )
    done = json.loads((work / "done.json").read_text())
    return Everything(places["RUNS"], {name: Done(*d) for name, d in zip(COMMANDS, done, strict=True)})


def test_there_are_forty_of_them() -> None:
    assert len(PLUGINS) + len(METHODS) + len(UNREADABLE) >= 40


@pytest.mark.parametrize("name", PLUGINS)
def test_each_is_recorded_with_what_it_raised_and_where(
    name: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (list(sys.argv), signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr)
    write_one(site, name)
    if name == "closes-descriptor":
        monkeypatch.setattr("os.close", lambda descriptor: None)  # this process needs its own
    monkeypatch.setattr("atexit.register", lambda call: None)
    monkeypatch.setattr("sys.__stdout__", sys.stdout)
    registry = discover(plugins=[c for c in candidates() if c.distribution == f"dist-{name}"])
    (found,) = (r for r in registry.plugins if r.name == name)
    assert (found.status, PLUGINS[name].says in found.reason) == (PLUGINS[name].status, True), found.reason
    assert found.reason == "" or (found.reason.isprintable() and len(found.reason) < 1000)
    if PLUGINS[name].says.endswith("("):
        assert f"{mod(name)}.py:" in found.reason
    assert (Path.cwd(), (list(sys.argv), signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr)) == (
        tmp_path,
        before,
    )
    print("still open", flush=True)
    assert capfd.readouterr().out.endswith("still open\n")


def test_the_listing_of_plugins_names_each_with_its_trouble(everything: Everything) -> None:
    rows = {r["name"]: r for r in everything.done["plugins"].document}
    assert {n: rows[n]["status"] for n in PLUGINS} == {n: p.status for n, p in PLUGINS.items()}
    assert "No module named 'mod_that_is_not_there'" in rows["absent"]["cause"]
    text = everything.done["plugins as text"]
    assert text.code == 0
    lines = {line.split()[0]: line for line in text.out.splitlines() if line}
    assert all(plugin.says in lines[name] for name, plugin in PLUGINS.items())


def test_metadata_that_cannot_be_read_harm_their_own_plugin_alone(site: Path) -> None:
    for name, entries in UNREADABLE.items():
        write_distribution(site, name, {}, {})
        (site / f"{name.replace('-', '_')}-1.0.dist-info" / "entry_points.txt").write_bytes(entries)
    write_one(site, "mute")
    registry = discover(plugins=[c for c in candidates() if c.distribution.startswith("dist-")])
    reasons = {r.name: r.reason for r in registry.plugins}
    assert all("entry_points.txt cannot be read" in reasons[name] for name in UNREADABLE)
    assert PLUGINS["mute"].says in reasons["mute"]


def test_listings_are_whole_documents(everything: Everything) -> None:
    methods = {r["name"]: r["error"] for r in everything.done["methods"].document}
    assert set(METHODS) == set(methods)
    assert all("pack_methods/methods/" in error for error in methods.values())
    steps = {r["name"] for r in everything.done["steps"].document}
    assert {"mine", "rate", "exiting"} <= steps
    assert not {"half", "s1", "s2", "s3", "s4"} & steps
    assert "quadratic" in {r["name"] for r in everything.done["tasks"].document}
    assert "$defs" in everything.done["schema"].document


def test_a_configuration_is_checked_and_trained_as_if_they_were_not_there(everything: Everything) -> None:
    assert "c.toml: in order, " in everything.done["check"].out
    assert everything.done["check"].code == 0
    summary = everything.done["train"].document
    assert (summary["steps"], summary["exit_reason"]) == (2, "finished")
    (folder,) = everything.runs.iterdir()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    failed = [e["detail"]["error"] for e in events if e["name"] == "reporter-failed"]
    for name in RAISING_HOOKS:
        assert sum(f'plugin "{name}"' in error and f"{mod(name)}.py:" in error for error in failed) == 1
    assert len(failed) == len(RAISING_HOOKS)


def test_a_part_whose_module_exits_is_a_fault_of_its_plugin(everything: Everything) -> None:
    done = everything.done["check a part that exits"]
    assert done.code == 4
    assert 'step "exiting" (dist-part-exits 1.0): ' in done.err
    assert "SystemExit: 0 (" in done.err
    assert "in order" not in done.out


def test_an_interrupt_in_a_hook_is_the_users(site: Path) -> None:
    source = hook("curvlab_run_started", "manifest", "raise KeyboardInterrupt")
    write_distribution(site, "dist-waits", {"mod_waits": source}, {"waits": "mod_waits"})
    registry = discover(plugins=[c for c in candidates() if c.distribution == "dist-waits"])
    tell = Broadcast()
    tell.open(Silent(), run_listeners(registry), {})
    with pytest.raises(KeyboardInterrupt):
        tell.started({})


class Silent(Reporter):
    """A log that keeps nothing."""

    def happened(self, event: Event) -> None:
        raise AssertionError(f"an interrupt became the event {event.name}")
