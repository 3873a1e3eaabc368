"""The loop: draw → step → record → evaluate → checkpoint → stop.

What is due is asked of the run's progress, never remembered in a local variable, so that a run that
goes on from a checkpoint does what it would have done had it not been stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from curvlab.engine.broadcast import Broadcast, Stop
from curvlab.engine.conversion import keep_to_phase
from curvlab.engine.evaluation import metrics_of
from curvlab.engine.interrupts import Interrupts
from curvlab.engine.placement import placed
from curvlab.engine.training import Training
from curvlab.errors import Diverged, Stopped
from curvlab.protocols.cadence import is_due
from curvlab.protocols.report import EvalRecord, Event, StepRecord


def training_loop(
    training: Training, tell: Broadcast, interrupts: Interrupts, save: Callable[[], Path]
) -> None:
    """Train until the budget is spent, then evaluate and checkpoint once more; or until a reporter stops it.

    Raises ``Stopped`` after a checkpoint when a signal was caught, and whatever the optimizer raises.
    """
    while True:
        training.company.heed(interrupts)
        if interrupts.caught:
            _stop(training, tell, interrupts, save)
        spent = training.spent
        if training.company.any(tell.stop is not None) and not spent:
            _end_on_request(training, tell, tell.stop or Stop("the first process", ""), save)
            return
        if _evaluation_due(training, spent):
            if spent:
                _log_last(training, tell)
            evaluate(training, tell)
            continue  # evaluating takes long; a signal may have come
        if _checkpoint_due(training, spent):
            _save(training, save)
            continue
        if spent:
            return
        _train_one_step(training, tell)


def evaluate(training: Training, tell: Broadcast) -> None:
    """Compute the metrics, tell them, and remember them and the best so far."""
    progress = training.progress
    # metrics must not move the numbers that random layers draw: evaluating more often changes nothing
    optimizer = training.optimizer
    with (
        torch.random.fork_rng(devices=_devices(training)),
        optimizer.backend.forward(),
        optimizer.ambient.aside(),
    ):
        size = training.plan.task.batch_size
        metrics = dict(metrics_of(training.workload, optimizer.averaging, size, training.company))
    progress.evaluated.set(progress.step, int(training.epochs))
    progress.metrics = metrics
    name, more_is_better = training.plan.task.judged_by
    value = metrics.get(name, math.nan)
    best = progress.best
    better = best is None or (value > best["value"] if more_is_better else value < best["value"])
    if math.isfinite(value) and better:
        progress.best = {"metric": name, "value": value, "step": progress.step}
    tell.evaluated(EvalRecord(progress.step, progress.seconds, metrics))


def _train_one_step(training: Training, tell: Broadcast) -> None:
    """One step, recorded where that is due; its loss is read on the host, which waits for the device."""
    progress, plan = training.progress, training.plan
    begun, epoch = perf_counter(), int(training.epochs)
    whole = training.samples.draw()
    draw = placed(training.company.share(whole), training.optimizer.backend.moved)
    if training.optimizer.averaging is not None:
        training.optimizer.averaging.used = training.fraction
    before = training.optimizer.steps
    training.optimizer.step(training.workload.objective(draw))
    taken = training.optimizer.steps > before  # or its batch was skipped, and an event says why
    progress.step += 1
    progress.examples += whole.gradient.numel()
    _follow(training, taken, epoch)
    progress.seconds = training.company.seconds(progress.seconds + perf_counter() - begun)
    keep_to_phase(training)
    if taken and (progress.step == 1 or is_due(progress.step, plan.run.log_every)):
        _log(training, tell)


def _follow(training: Training, taken: bool, epoch: int) -> None:
    """Callbacks take in the step, and every epoch that it has ended; ``epoch`` had ended before."""
    companions, optimizer = training.companions, training.optimizer
    if taken and optimizer.last is not None:
        companions.stepped(training.model, optimizer.last.loss)
    for ended in range(epoch + 1, int(training.epochs) + 1):
        for event in companions.epoch_ended(training.model, ended, training.progress.step):
            optimizer.assignment.emit(event)
        reason = companions.stops()
        if reason is not None:
            detail = {"reason": reason, "epoch": ended}
            optimizer.assignment.emit(Event("stopped-early", training.progress.step, detail))
            return


def _log(training: Training, tell: Broadcast) -> None:
    progress, facts = training.progress, training.optimizer.last
    progress.logged = progress.step
    record = StepRecord(progress.step, training.epochs, progress.examples, progress.seconds, **vars(facts))
    tell.stepped(record)


def _log_last(training: Training, tell: Broadcast) -> None:
    """The last step is logged whatever its number; after a resume without a step there is none to log."""
    if training.progress.logged != training.progress.step and training.optimizer.last is not None:
        _log(training, tell)


def _evaluation_due(training: Training, spent: bool) -> bool:
    progress = training.progress
    if spent:
        return progress.evaluated.step < progress.step or progress.metrics is None
    return progress.evaluated.due(training.plan.run.eval_every, progress.step, int(training.epochs))


def _checkpoint_due(training: Training, spent: bool) -> bool:
    progress = training.progress
    if spent:
        return progress.saved.step < progress.step
    return progress.saved.due(training.plan.run.checkpoint_every, progress.step, int(training.epochs))


def _save(training: Training, save: Callable[[], Path]) -> None:
    # marked first, so that the checkpoint itself knows that it exists
    saved = training.progress.saved
    before = saved.step, saved.epoch
    saved.set(training.progress.step, int(training.epochs))
    try:
        training.checkpoint = save()
    except Diverged:  # the one before stays the newest
        saved.set(*before)
        raise


def _stop(training: Training, tell: Broadcast, interrupts: Interrupts, save: Callable[[], Path]) -> None:
    """Checkpoint, unless this step has one, and end the run."""
    step = training.progress.step
    if training.checkpoint is None or training.progress.saved.step < step:
        _save(training, save)
    signal, path = interrupts.caught, training.checkpoint
    tell.happened(Event("signal", step, {"signal": signal, "checkpoint": str(path)}))
    raise Stopped(f"stopped by {signal} after step {step}, with a whole checkpoint", interrupts.exit_code)


def _end_on_request(training: Training, tell: Broadcast, stop: Stop, save: Callable[[], Path]) -> None:
    """Checkpoint, unless this step has one; the run ends as it is, without another evaluation."""
    step = training.progress.step
    if training.checkpoint is None or training.progress.saved.step < step:
        _save(training, save)
    detail = {"reporter": stop.reporter, "reason": stop.reason, "checkpoint": str(training.checkpoint)}
    tell.happened(Event("stopped", step, detail))


def _devices(training: Training) -> list[torch.device]:
    device = training.plan.backend.torch_device
    return [device] if device.type == "cuda" else []
