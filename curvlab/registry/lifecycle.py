"""Passes a run's life on to the plugins that listen to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curvlab.errors import PluginError, raised
from curvlab.protocols.report import EvalRecord, Reporter, StepRecord, StopRun
from curvlab.registry.loader import implementations
from curvlab.registry.registry import Registry

_STARTED, _STEPPED = "curvlab_run_started", "curvlab_step_finished"
_EVALUATED, _FINISHED = "curvlab_evaluation_finished", "curvlab_run_finished"


def run_listeners(registry: Registry) -> tuple[PluginListener, ...]:
    """One reporter for each plugin that implements a hook of a run's life."""
    plugins = {
        name
        for hook in (_STARTED, _STEPPED, _EVALUATED, _FINISHED)
        for name, _ in implementations(registry.manager, hook)
    }
    return tuple(PluginListener(name, registry) for name in sorted(plugins))


@dataclass(frozen=True)
class PluginListener(Reporter):
    """Calls one plugin's hooks; what they raise becomes a ``PluginError`` that names plugin and hook.

    One reporter a plugin, because a run drops a reporter that raises, with an event, and goes on.
    """

    plugin: str
    registry: Registry = field(compare=False, repr=False)

    def started(self, manifest: Mapping[str, Any]) -> None:
        """``curvlab_run_started``."""
        self._call(_STARTED, manifest=manifest)

    def stepped(self, record: StepRecord) -> None:
        """``curvlab_step_finished``."""
        self._call(_STEPPED, record=record)

    def evaluated(self, record: EvalRecord) -> None:
        """``curvlab_evaluation_finished``."""
        self._call(_EVALUATED, record=record)

    def finished(self, summary: Mapping[str, Any]) -> None:
        """``curvlab_run_finished``."""
        self._call(_FINISHED, summary=summary)

    def _call(self, hook: str, **arguments: Any) -> None:
        for _, call in implementations(self.registry.manager, hook, self.plugin):
            try:
                call(**arguments)
            except (KeyboardInterrupt, StopRun):
                raise
            except BaseException as err:  # a plugin may raise anything, SystemExit included
                raise PluginError(f'plugin "{self.plugin}": {hook} raised {raised(err)}') from err
