"""The six hooks that a plugin may implement: empty functions whose signatures are the contract.

A plugin is a distribution with an entry point in the group ``curvlab``.  The module it names says
``api_version = "1.0"`` and decorates its functions with ``curvlab.hookimpl``; an implementation
takes those of a hook's arguments that it wants.  The order in which plugins are called is
unspecified, and one that raises does not keep the others from being called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from curvlab.registry.identity import PROJECT

if TYPE_CHECKING:
    import typer

    from curvlab.protocols.report import EvalRecord, StepRecord
    from curvlab.registry.registry import Registry

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def curvlab_register(registry: Registry) -> None:
    """Add parts with ``registry.add`` and method files with ``registry.methods``.

    Called once, at start, before any configuration is read; every listing waits for it, so the
    module that implements it must not import torch.
    """


@hookspec
def curvlab_run_started(manifest: Mapping[str, Any]) -> None:
    """A run is about to train; ``manifest`` is the content of its ``manifest.json``."""


@hookspec
def curvlab_step_finished(record: StepRecord) -> None:
    """A step that is logged (every ``run.log_every``) was taken.

    ``StopRun`` of ``curvlab.protocols.report``, raised in a hook of a run, ends the run on purpose.
    """


@hookspec
def curvlab_evaluation_finished(record: EvalRecord) -> None:
    """The task's metrics were computed, every ``run.eval_every``; ``record.metrics`` has them by name."""


@hookspec
def curvlab_run_finished(summary: Mapping[str, Any]) -> None:
    """A run is over, for whatever reason; ``summary`` is the content of its ``summary.json``."""


@hookspec
def curvlab_cli(app: typer.Typer) -> None:
    """Add commands to the command line; import what is heavy inside them.

    ``app`` is this plugin's own and empty; what is added to it is taken over afterwards, but for
    commands whose name is taken.
    """
