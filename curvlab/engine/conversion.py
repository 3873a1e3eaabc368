"""From one precision to the next while a run trains: parameters, states and data change their dtypes."""

from __future__ import annotations

from curvlab.engine.arms import Arm
from curvlab.engine.checkpoint import Checkpoint
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.training import Progress, Training, assembled, require_same_run, restore
from curvlab.protocols.backend import Backend
from curvlab.protocols.report import Event


def keep_to_phase(training: Training) -> None:
    """Go over to the precision that the run's progress asks for, if it is another one.

    Every tensor of the state is rounded to the dtype of its role in the new precision; counters, random
    numbers and samples go on.  The event ``precision-changed`` says so.
    """
    present, wanted = training.optimizer.backend, training.plan.backend.at(training.fraction)
    if wanted != present:
        _convert(training, wanted)
        step, names = training.progress.step, {"from": _name(present), "to": _name(wanted)}
        event = Event("precision-changed", step, {**names, "fraction": training.fraction})
        training.optimizer.assignment.emit(event)


def restore_in_phase(training: Training, checkpoint: Checkpoint) -> None:
    """Put ``training`` where ``capture`` found it, in the precision that it had then."""
    require_same_run(training.plan, checkpoint, f"checkpoint {checkpoint.path}")
    training.progress = Progress.of(checkpoint.plain["progress"])
    wanted = training.plan.backend.at(training.fraction)
    if wanted != training.optimizer.backend:
        _convert(training, wanted)
    restore(training, checkpoint)


def _convert(training: Training, wanted: Backend) -> None:
    old = training.optimizer
    masters = [(arm, arm.state.master) for arm in old.arms if arm.state.master is not None]
    training.workload, training.optimizer = assembled(
        training.plan,
        training.model,
        wanted,
        old.on_event,
        training.samples,
        training.companions,
        training.company,
    )
    training.model = training.workload.model
    for arm, master in masters:  # what was rounded away comes back, where there is room for it
        arm.mine.assign_(master)
        if old.owners is not None:
            old.owners.spread(arm.blocks, frozenset())
    _hand_over(old, training.optimizer)


def _name(backend: Backend) -> str:
    """The dtype of parameters, that of passes where it is another, and what else there is to say."""
    dtypes = backend.dtypes
    passes, parameters = (str(d).removeprefix("torch.") for d in (dtypes.compute, dtypes.parameters))
    words = (parameters, "" if dtypes.compute is None else f"passes in {passes}", backend.remark)
    return ", ".join(filter(None, words))


def _hand_over(old: CurvatureOptimizer, new: CurvatureOptimizer) -> None:
    """The state of one optimizer to another of the same model; the loss scale begins anew."""
    tensors, plain = old.snapshot()
    tensors = {n: t for n, t in tensors.items() if "/master@" not in n}
    plain = {n: v for n, v in plain.items() if n != "loss_scale" and not n.endswith("/master")}
    for arm in old.arms:
        if new.backend.master:
            tensors.update({f"{_master(arm)}@{name}": t for name, t in arm.mine.read().items()})
        else:
            plain[_master(arm)] = None
    new.restore(tensors, plain)
    new.reported = old.reported
    new.last = old.last


def _master(arm: Arm) -> str:
    return f"{arm.name}/master"
