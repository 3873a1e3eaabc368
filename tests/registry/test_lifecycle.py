"""A run's life, told to plugins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from curvlab.engine.broadcast import Broadcast
from curvlab.errors import PluginError
from curvlab.protocols.report import EvalRecord, Event, Reporter, StepRecord
from curvlab.registry import Registry
from curvlab.registry.lifecycle import run_listeners
from tests.registry.sites import module

RegistryWith = Callable[..., Registry]

RECORD = StepRecord(step=1, epoch=0.1, examples=2, seconds=0.1, loss=1.0, lr=0.1)

HEARS = """
heard = []
@hookimpl
def curvlab_run_started(manifest):
    heard.append(("started", manifest))
@hookimpl
def curvlab_step_finished(record):
    heard.append(("step", record.step))
@hookimpl
def curvlab_evaluation_finished(record):
    heard.append(("evaluated", record.metrics))
@hookimpl
def curvlab_run_finished():
    heard.append(("finished",))
"""

RAISES = "@hookimpl\ndef curvlab_step_finished(record):\n    raise ZeroDivisionError('oops')\n"


class Events(Reporter):
    def __init__(self) -> None:
        self.seen: list[Event] = []

    def happened(self, event: Event) -> None:
        self.seen.append(event)


def test_nobody_listens_to_a_run_unless_a_plugin_says_so(registry_with: RegistryWith) -> None:
    assert run_listeners(registry_with({"quiet": module()})) == ()


def test_hooks_are_called_with_the_arguments_they_take(registry_with: RegistryWith) -> None:
    (listener,) = run_listeners(registry_with({"hears": module(more=HEARS)}))
    listener.started({"seed": 1})
    listener.stepped(RECORD)
    listener.evaluated(EvalRecord(1, 0.1, {"val_loss": 0.5}))
    listener.finished({"steps": 1})
    import mod_hears

    assert mod_hears.heard == [
        ("started", {"seed": 1}),
        ("step", 1),
        ("evaluated", {"val_loss": 0.5}),
        ("finished",),
    ]


def test_a_hook_that_raises_is_told_with_plugin_and_hook(registry_with: RegistryWith) -> None:
    (listener,) = run_listeners(registry_with({"raises": module(more=RAISES)}))
    with pytest.raises(
        PluginError, match='plugin "raises": curvlab_step_finished raised ZeroDivisionError: oops'
    ):
        listener.stepped(RECORD)


def test_a_hook_may_end_the_run(registry_with: RegistryWith) -> None:
    stops = (
        "from curvlab.protocols.report import StopRun\n"
        "@hookimpl\ndef curvlab_evaluation_finished(record):\n    raise StopRun('seen enough')\n"
    )
    tell = Broadcast()
    tell.open(Events(), run_listeners(registry_with({"stops": module(more=stops)})), {})
    tell.evaluated(EvalRecord(1, 0.1, {"val_loss": 0.5}))
    assert tell.stop is not None
    assert tell.stop.reason == "seen enough"


def test_one_raising_plugin_does_not_silence_the_others_in_a_run(registry_with: RegistryWith) -> None:
    listeners = run_listeners(registry_with({"a_raises": module(more=RAISES), "hears": module(more=HEARS)}))
    log, tell = Events(), Broadcast()
    counts: dict[str, int] = {}
    tell.open(log, listeners, counts)
    manifest: dict[str, Any] = {}
    tell.started(manifest)
    tell.stepped(RECORD)
    tell.stepped(RECORD)
    tell.finished({})
    import mod_hears

    assert [what[0] for what in mod_hears.heard] == ["started", "step", "step", "finished"]
    (event,) = log.seen
    assert event.name == "reporter-failed"
    assert 'plugin "a_raises"' in event.detail["error"]
