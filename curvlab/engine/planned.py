"""The planned update of one arm: what is computed of a step before any parameter is written.

The engine plans the updates of all arms, then writes them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from curvlab.engine.admission import Admitted
from curvlab.engine.agreement import ALONE, Agreement
from curvlab.engine.health import culprit, require_finite_state
from curvlab.engine.ladder import Emit, NotFinite, with_more_damping
from curvlab.engine.state import tensors_of
from curvlab.engine.trials import Followed, Trials
from curvlab.engine.undo import Undo
from curvlab.errors import Diverged, NotPositiveDefinite
from curvlab.linalg.cg import Stop
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, Step, StepOutcome
from curvlab.protocols.objective import Objective
from curvlab.protocols.report import Event
from curvlab.protocols.step import At

#: of a solution whose ‖x‖² is below, transforms that cannot fail make a finite update
MODEST = 1e30


class PlannedUpdate:
    """From the evidence of one arm to its one write; the methods are called in this order, each once.

    ``moves`` is false where the preconditioner is not ready: the arm has observed, and stays where it is.
    ``ctx`` holds the damping that succeeded.  With ``agreement``, other processes plan the update of the
    arm's other blocks at the same time, and what happens to one of them happens to all.
    """

    def __init__(
        self, admitted: Admitted, ctx: Context, emit: Emit, undo: Undo, agreement: Agreement = ALONE
    ) -> None:
        self.arm, self.seen, self.rates = admitted.arm, admitted.seen, admitted.rates
        self.risk, self.ctx = admitted.risk, ctx
        self.moves = True
        self.outcome: StepOutcome
        self._emit, self._undo, self._agreement = emit, undo, agreement
        self.gradient: BlockVector  #: what is preconditioned: the gradient after ``on_gradient``
        self.at: At
        self._solve: Solve
        self._modest = False  #: whether the solution was checked, and is of moderate size

    def observe(self) -> None:
        """Take in the evidence, once per step; more damping does not help what fails here."""
        ready = self._agreement.attempt(self._observed)
        self.moves = not self._agreement.any(not ready)[0]

    def _observed(self) -> bool:
        """Whether the preconditioner can be applied then."""
        if self.arm.idle:
            return True
        part, state = self.arm.method.preconditioner, self.arm.state.preconditioner
        try:
            part.observe(state, self.seen, self.ctx)
        except NotPositiveDefinite as error:
            raise Diverged(f"step {self.ctx.step}: {error}") from error
        return part.ready(state)

    def transform_gradient(self) -> None:
        """The gradient through the transforms before preconditioning."""
        v = self.seen.gradient.borrow()
        at = self._standing()
        for transform, own in zip(self.arm.method.on_gradient, self.arm.state.on_gradient, strict=True):
            v = transform(own, v, at)
        self.gradient, self.at = v, self._standing(v.borrow())

    def direct(self) -> None:
        """Refresh and precondition, with more damping while that fails."""
        check = not self.risk.checked_late
        self._solve, self.ctx = with_more_damping(
            lambda ctx: self._solved(ctx, check), self.ctx, self._emit, self._agreement
        )

    def search(self, objective: Objective | None) -> None:
        """The step along the update and, where the damping needs it, the reduction ratio.

        Raises ``Diverged`` for an update, or parameters after it, that are not finite.
        """
        if self.moves:
            update = self._updated()
            line = self._line(update, objective)
            method, step = self.arm.method, self.ctx.step
            chosen = method.step.search(self.arm.state.step, line, step)
            asks = method.damping.needs(step)
            ratio = line.ratio(chosen) if asks.products and chosen.accepted else None
            self.outcome = StepOutcome(self.seen, self._solve, chosen, ratio)
            known = chosen.update is update
        else:
            nothing = self.seen.gradient.zeros_like()
            self.outcome = StepOutcome(self.seen, Solve(nothing), Step(nothing, 0.0, accepted=False))
            known = False
        self._agreement.attempt(lambda: self._require_finite(self.outcome.step, known))

    def _require_finite(self, step: Step, known: bool) -> None:
        if step.accepted:
            self._require_finite_step(step, known=known)
        if not self.arm.idle:
            self._require_finite_states()

    def write(self) -> None:
        """The one write of θ, or none; the states are from now on those of this step."""
        arm, step = self.arm, self.outcome.step
        if step.accepted:
            self.rates.write_(step.update, step.alpha, self.ctx.storage)
        if self.risk.fallible:  # it may hold other tensors than before
            arm.state.watch.forget_all_but((*tensors_of(arm.state), *arm.mine.values()))
        arm.state.watch.renew()

    def look_back(self, after: Evaluation | None) -> None:
        """Add the evaluation where the step ended to the outcome."""
        if after is not None:
            self.outcome = replace(self.outcome, after=after.restrict(self.seen.gradient.layout))

    def learn(self) -> None:
        """Parts learn from the outcome of the step, unless the arm stayed where it is."""
        arm, ctx = self.arm, self.ctx
        if not self.moves:
            self._emit(Event("preconditioner-initialized", ctx.step, {"arm": arm.name}))
            return
        part = arm.method.preconditioner
        events = () if arm.idle else part.learn(arm.state.preconditioner, self.outcome, ctx)
        arm.method.damping.learn(arm.state.damping, self.outcome, ctx.step)
        if not self.outcome.step.accepted:
            self._emit(Event("rejected", ctx.step, {"arm": arm.name, "damping": ctx.damping}))
        for event in events:
            self._emit(event)

    # helpers

    def _standing(self, given: BlockVector | None = None) -> At:
        """Where the transforms of the gradient stand, or, with what was preconditioned, those behind it."""
        step, rates = self.ctx.step, self.rates
        lr = self.arm.method.step.rate(step) * rates.rate
        return At(
            self.seen.gradient,
            step,
            lr,
            rates.add_parameters_,
            self.arm.mine.read,
            given,
            self.ctx.storage,
            self._agreement.total,
            rates.ratio,
        )

    def _solved(self, ctx: Context, check: bool) -> Solve:
        """One attempt; raises ``NotFinite`` for a solution that is checked and not finite."""
        arm = self.arm
        if arm.idle:
            return Solve(self.gradient.zeros_like())
        part, state = arm.method.preconditioner, arm.state.preconditioner
        part.refresh(state, ctx)
        solve = part.apply(state, self.gradient, ctx)
        if not check and solve.reason is not Stop.NONFINITE:
            self._modest = False
            return solve
        size = solve.x.size()
        small = math.isfinite(size)
        if solve.reason is Stop.NONFINITE or not (small or solve.x.is_finite()):
            raise NotFinite(f"the update is not finite; {culprit(arm.mine, solve.x)}")
        if not small:
            self._undo.keep(arm.state.on_update)
        self._modest = size < MODEST
        return solve

    def _updated(self) -> BlockVector:
        """The update, in units of the arm's rate; raises ``Diverged`` if it is not finite."""
        update = self._transformed()
        finite = (self._modest and self.risk.bounded) or update.is_finite()
        if not self._agreement.any(not finite)[0]:
            return update
        if self.risk.checked_late:
            self._solve, self.ctx = with_more_damping(
                lambda ctx: self._solved(ctx, True), self.ctx, self._emit, self._agreement
            )
            update = self._transformed()
            finite = update.is_finite()
            if not self._agreement.any(not finite)[0]:
                return update
        words = f"step {self.ctx.step}: the update is not finite; {culprit(self.arm.mine, update)}"
        raise Diverged(self._agreement.first(None if finite else words) or words)

    def _transformed(self) -> BlockVector:
        """The solution after the transforms behind preconditioning."""
        update = self._solve.x
        for transform, own in zip(self.arm.method.on_update, self.arm.state.on_update, strict=True):
            update = transform(own, update, self.at)
        return self.rates.scaled(update)

    def _line(self, update: BlockVector, objective: Objective | None) -> Trials:
        seen, ctx = self.seen, self.ctx
        known = self.arm.method.step.needs(ctx.step).gradients > 0
        return Trials(
            update=update,
            gradient=seen.gradient,
            rate=self.rates.rate,
            damping=ctx.damping,
            ggn=seen.ggn,
            loss=float(seen.loss) if known else float("nan"),
            iterates=self._solve.iterates,
            path=None if self._solve.path is None else Followed(self._solve.path, self.rates),
            rates=self.rates,
            objective=objective,
            seen=seen,
        )

    def _require_finite_step(self, step: Step, *, known: bool) -> None:
        """θ − α · update is finite; ``known``: the update was found to be.

        Rates above 1 cost another check.
        """
        update, alpha, blocks = step.update, step.alpha, self.arm.mine
        finite = math.isfinite(alpha) and (known or update.is_finite())
        if finite and abs(alpha) <= 1.0:
            return
        size, largest = update.size(), torch.finfo(update.dtype).max
        if math.isfinite(size) and abs(alpha) < largest / 2 and abs(alpha) * math.sqrt(size) < largest / 2:
            return
        if not finite:
            raise Diverged(f"step {self.ctx.step}: the update is not finite; {culprit(blocks, update)}")
        if not blocks.read().add_(update, -alpha).is_finite():
            what = f"parameters would not be finite after a step of rate {alpha:.3g}"
            raise Diverged(f"step {self.ctx.step}: {what}")

    def _require_finite_states(self) -> None:
        """What a step that may fail has made of its states is finite."""
        method, state = self.arm.method, self.arm.state
        made = [state.preconditioner] if self.risk.fallible else []
        if any(t.fallible for t in (*method.on_gradient, *method.on_update)):
            made += [state.on_gradient, state.on_update]
        for part in made:
            what = f'step {self.ctx.step}: the new state of "{self.arm.name}" is not finite'
            require_finite_state(part, state.watch, what)
