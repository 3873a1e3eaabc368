"""Going on with a run: which changes to its configuration are free, and which would falsify it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curvlab.errors import ConfigError, Fault

if TYPE_CHECKING:
    from curvlab.config import Layers

BUDGETS = ("run.epochs", "run.steps", "run.seconds")

#: what may change when a run goes on: how long, what is told and kept of it, and by whom it is computed
TOLD = ("run.log_every", "run.eval_every", "run.checkpoint_every", "run.keep", "report")
FREE = (*BUDGETS, *TOLD, "run.placement")


def continued(folder: Path, changes: Sequence[str]) -> Layers:
    """The resolved configuration of a run with ``changes`` (``a.b=value``) made to it.

    A new budget takes the place of the old one.  Raises ``ConfigError`` naming every key whose change
    would falsify the run, and ``RunFolderError`` if ``resolved.toml`` is not what was written.
    """
    from curvlab.config import load
    from curvlab.config.tree import Node
    from curvlab.engine.folder import resolved_of
    from curvlab.engine.training import by_key

    resolved_of(folder)
    path = folder / "resolved.toml"
    before, after = load(path), load(path, changes)
    old, new = by_key(before.data), by_key(after.data)
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    wrong = [key for key in changed if not _free(key)]
    if wrong:
        hint = f"start a new run with `curvlab train`; a resumed run may change {', '.join(FREE)}"
        raise ConfigError(
            *(Fault("this setting cannot change in a resumed run", path=key, hint=hint) for key in wrong)
        )
    given = {budget for budget in BUDGETS if budget in changed}
    if not given:
        return after
    run = after.tree.table["run"].without(*(b.removeprefix("run.") for b in BUDGETS if b not in given))
    return dataclasses.replace(after, tree=Node({**after.tree.table, "run": run}, after.tree.origin))


def _free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE)
