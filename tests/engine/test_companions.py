"""Callbacks around any method: their penalties, their curvature, their rates, and what a run keeps."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.config import build, load
from curvlab.engine.companions import Companions
from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.penalized import Penalized
from curvlab.engine.plan import Plan
from curvlab.engine.state import export
from curvlab.errors import ConfigError
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.objectives.supervised import objective
from curvlab.parts.damping import Constant
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.inverses import Eigen
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.steps import Rate
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.rows import Rows
from curvlab.protocols.storage import Storage
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close
from curvlab.testing.members import gram
from curvlab.testing.problems import DTYPE, labels, normal
from curvlab.testing.reference import Lapack
from curvlab_kfac.split_damping import SplitCholesky
from curvlab_singd.update import Factors, Rule, update
from tests.engine.anchored import Anchor, Pace, Plane
from tests.engine.small_run import PLAIN, parameters, run_small, same, small_plan, stopped_at
from tests.limits.registered import DAMPED, methods, optimizer, registry

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

#: methods whose update is made of the gradients of examples, which a penalty is not
WITHOUT_PENALTIES = {"fngd", "lm"}

#: methods that solve without damping, and need some for what no row of residuals explains
KNOBS = {**DAMPED, "engd": {"damping": 0.1}, "dngd": {"damping": 0.1}}

#: what a preconditioner holds of its solutions, which follow the penalty as they should
SOLUTIONS = ("start@", "last@", "inner.memory.")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(DTYPE)


def batch() -> tuple[Tensor, Tensor]:
    return normal(12, 4, seed=1), labels(12, classes=3, seed=1)


def step_of(name: str, callback: Any, steps: int = 1) -> tuple[CurvatureOptimizer, list[Tensor]]:
    """An optimizer after its first steps, and how far each parameter moved."""
    model = network()
    method = optimizer(name, model, **KNOBS.get(name, {})).given[0]
    companions = None if callback is None else Companions.of({"one": callback}, model, method)
    made = CurvatureOptimizer(method, model, backend=Full("float64"), name=name, companions=companions)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(steps):
        made.step(objective(model, nn.CrossEntropyLoss(), *batch()))
    return made, [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)]


#: methods that learn from the step that they take, which a penalty bends, and what they learn so
FROM_STEPS, PAIRS = ("kbfgs", "kbfgs-l"), re.compile(r"\.outputs\.|\.[sy]$")


@pytest.mark.parametrize("name", methods())
def test_every_method_follows_a_penalty_of_which_no_curvature_factor_holds_anything(name: str) -> None:
    if name in WITHOUT_PENALTIES:
        with pytest.raises(ConfigError, match="penalty"):
            step_of(name, Anchor(rho=5.0, curved=False))
        return
    plain, without = step_of(name, None)
    pulled, with_it = step_of(name, Anchor(rho=5.0, curved=False))
    if name in ("soap", "kl-soap", "kl-shampoo"):  # the first step starts the moments, and moves nothing
        (_, without), (_, with_it) = step_of(name, None, 2), step_of(name, Anchor(rho=5.0, curved=False), 2)
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(without, with_it, strict=True))
    if plain.needs(0).layers:
        for one, other in zip(plain.arms, pulled.arms, strict=True):
            if one.treatment != "fallback":
                mine, theirs = (export(arm.state.preconditioner)[0] for arm in (one, other))
                assert mine.keys() == theirs.keys()
                differ = [n for n in mine if not torch.equal(mine[n], theirs[n])]
                if name in FROM_STEPS:
                    differ = [n for n in differ if not PAIRS.search(n)]
                assert all(n.startswith(SOLUTIONS) for n in differ), differ


def test_a_constraint_takes_its_part_of_the_gradient_of_loss_and_penalties_on_every_way_there() -> None:
    model = network()
    method = optimizer("kfac", model).given[0]
    companions = Companions.of({"pull": Anchor(rho=0.7), "plane": Plane()}, model, method)
    made = CurvatureOptimizer(method, model, backend=Full("float64"), companions=companions)
    loss = objective(model, nn.CrossEntropyLoss(), *batch())
    both, at = Penalized(loss, companions, model), dict(model.named_parameters())
    free = loss.differentiate(at)[1]
    expected = {n: free[n] + 0.7 * (p.detach() - 1.0) for n, p in at.items()}
    expected["0.weight"] -= expected["0.weight"].mean()

    seen = both.evaluate(made.needs(0), made.blocks, made.assignment.context(made.arms[0], 0))
    evaluated = made.blocks.assembled(seen.gradient)
    differentiated = both.differentiate(at)[1]
    both()
    for n, p in at.items():
        for g in (evaluated[n], differentiated[n], p.grad):
            assert g is not None
            assert_close(g, expected[n], scale=1.0)
    assert seen.beside is not None
    # what no row of layer statistics explains: methods add it to the gradient that their rows give
    other = made.blocks.assembled(seen.beside)
    assert_close(other["0.weight"], expected["0.weight"] - free["0.weight"], scale=1.0)


@pytest.mark.parametrize("name", sorted(WITHOUT_PENALTIES))
def test_methods_that_follow_solutions_of_residuals_refuse_a_constraint(name: str) -> None:
    with pytest.raises(ConfigError, match="restricts gradients"):
        step_of(name, Plane())


def test_a_constraint_without_any_penalty_reaches_a_method_that_steps_along_the_gradient() -> None:
    _, free = step_of("sgd", None)
    _, moved = step_of("sgd", Plane())
    assert_close(moved[0], free[0] - free[0].mean(), scale=1.0)
    assert all(torch.equal(a, b) for a, b in zip(moved[1:], free[1:], strict=True))


def test_newtons_step_on_squares_and_an_anchor_is_their_exact_minimum() -> None:
    model, (x, _) = nn.Linear(4, 2).to(DTYPE), batch()
    y, rho = normal(12, 2, seed=3), 0.5
    newton = Method(Iterative(GaussNewton(), ConjugateGradients(max_iterations=60)), Constant(0.0), Rate(1.0))
    companions = Companions.of({"anchor": Anchor(rho=rho)}, model, newton)
    made = CurvatureOptimizer(newton, model, backend=Full("float64"), companions=companions)
    made.step(objective(model, nn.MSELoss(), x, y))
    a = torch.cat([x, x.new_ones(12, 1)], 1)
    # mean over entries of squares: (2/24) (aᵀa θ − aᵀy) + rho (θ − 1) = 0
    H = 2 / 24 * a.mT @ a + rho * torch.eye(5, dtype=DTYPE)
    expected = torch.linalg.solve(H, 2 / 24 * a.mT @ y + rho)
    found = torch.cat([model.weight.detach().mT, model.bias.detach()[None]])
    assert_close(found, expected, condition=1e4)


@pytest.mark.parametrize("relative", [False, True])
def test_factors_are_damped_by_lambda_and_the_curvature_of_penalties(relative: bool) -> None:
    A, B = gram(Dense(), 4, 0), gram(Dense(), 3, 1)
    lam, rho, g = 0.3, 0.7, normal(3, 4, seed=2)
    ctx = Context(0, lam, Lapack(), torch.Generator(), ridge={"one": rho})
    dense_A, dense_B = A.dense(), B.dense()
    mean = float(dense_A.diagonal().mean() * dense_B.diagonal().mean()) if relative else 1.0
    total = lam * mean + rho
    C = BlockDiagonal({"one": Kronecker(B, A)})
    C_ = torch.kron(dense_B, dense_A)
    expected = torch.linalg.solve(C_ + total * torch.eye(12, dtype=DTYPE), g.reshape(-1)).reshape(3, 4)
    assert_close(Eigen(relative=relative)(C, ctx).blocks["one"].product(g), expected, condition=1e4)
    # split damping with λ' in place of λ, which the same inverse makes without any ridge
    bare = Context(0, total / mean, Lapack(), torch.Generator())
    split = SplitCholesky(relative=relative)
    assert_close(
        split(C, ctx).blocks["one"].product(g), split(C, bare).blocks["one"].product(g), condition=100.0
    )


#: how the curvature of a penalty reaches a method
ENTERS = {
    "kfac": "damping", "ekfac": "damping", "singd": "damping", "ingd": "damping", "sophia": "damping",
    "smw-ngd": "damping", "cg-fac": "damping", "hf-martens": "products",
    "adamw": "gradient alone", "sgd": "gradient alone", "shampoo": "gradient alone", "foof": "gradient alone",
}  # fmt: skip


@pytest.mark.parametrize("name", ENTERS)
def test_the_curvature_of_a_penalty_enters_where_the_event_says(name: str) -> None:
    model, events = network(), []
    method = optimizer(name, model).given[0]
    companions = Companions.of({"anchor": Anchor(rho=5.0)}, model, method)
    made = CurvatureOptimizer(
        method, model, backend=Full("float64"), companions=companions, on_event=events.append
    )
    made.step(objective(model, nn.CrossEntropyLoss(), *batch()))
    said = [event.detail["enters"] for event in events if event.name == "penalty-curvature"]
    assert said == [ENTERS[name]]
    _, flat = step_of(name, Anchor(rho=5.0, curved=False))
    _, curved = step_of(name, Anchor(rho=5.0, curved=True))
    same = [torch.equal(p, q) for p, q in zip(flat, curved, strict=True)]
    assert all(same) if ENTERS[name] == "gradient alone" else not any(same)


def test_singds_factors_take_a_ridge_as_damping_in_units_of_the_mean_curvature() -> None:
    a, g = normal(9, 4, seed=0), normal(9, 3, seed=1)
    rows = Rows(a, 1.0 / 9, g, 1.0)
    u_K, u_C = float(a.square().sum() / 36), float(g.square().sum() / 3)
    found = []
    for damping, ridge in ((0.1, 0.7), (0.1 + 0.7 / (u_K * u_C), 0.0)):
        eyes = Dense().eye(4, like=a), Dense().eye(3, like=a)
        f = Factors(*eyes, None, None, None)
        assert update(f, rows, damping, 0.05, Rule("mean", 0.0, 1, 1e9, True), Storage(), ridge=ridge)
        found.append((f.K.dense(), f.C.dense()))
    assert_close(found[0][0], found[1][0], condition=100.0)
    assert_close(found[0][1], found[1][1], condition=100.0)


def test_rates_multiply_the_steps_of_the_parameters_that_they_name_and_of_no_other() -> None:
    _, whole = step_of("sgd", None)
    _, some = step_of("sgd", Pace(0.25))
    assert_close(some[0], 0.25 * whole[0], condition=10.0)
    assert all(torch.equal(a, b) for a, b in zip(some[1:], whole[1:], strict=True))


def test_a_rule_that_chooses_among_solutions_refuses_rates() -> None:
    model = network()
    with pytest.raises(ConfigError, match="chooses among solutions"):
        Companions.of({"pace": Pace()}, model, optimizer("hf-gn", model).given[0])


def followed(last: int = 10**9, **run: Any) -> Plan:
    callbacks = {"anchor": Anchor(rho=0.1, last=last), "pace": Pace(0.5)}
    return replace(small_plan(log_every=1, **run), callbacks=callbacks, method=PLAIN)


def test_a_run_with_callbacks_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = run_small(tmp_path / "a", followed())
    folder, _ = stopped_at(tmp_path / "b", 13, signal.SIGTERM, plan=followed())
    resumed = run_small(tmp_path / "b", followed(), resume=folder)
    same(whole, resumed)
    mine, theirs = (r.optimizer.companions.snapshot() for r in (whole, resumed))
    assert mine[1] == theirs[1]
    assert mine[1]["anchor"]["epochs"] == 6  # 30 steps of 16 of 72 examples
    assert all(torch.equal(t, theirs[0][n]) for n, t in mine[0].items())
    names = [json.loads(line)["name"] for line in (whole.folder / "events.jsonl").read_text().splitlines()]
    assert names.count("anchored") == 6


def test_a_callback_ends_a_run_which_is_then_finished(tmp_path: Path) -> None:
    run = run_small(tmp_path, followed(last=2))
    assert run.summary["exit_reason"] == "finished"
    assert run.summary["steps"] == 9
    assert run.summary["events"]["stopped-early"] == 1
    again = run_small(tmp_path, followed(last=2), resume=run.folder)
    assert again.was_over
    assert all(torch.equal(t, parameters(again)[n]) for n, t in parameters(run).items())


CONFIGURED = {"task": {"use": "digits"}, "method": {"use": "kfac"}, "run": {"steps": 2}, "report": "quiet"}


def test_callbacks_are_tables_by_names_of_ones_own_and_part_of_the_resolved_configuration() -> None:
    given = {**CONFIGURED, "callbacks": {"stop": "early-stop"}}
    plan = build(load(data=given, overrides=["callbacks.stop.patience=3"]), registry())
    assert plan.callbacks["stop"].patience == 3
    assert plan.resolved["callbacks"]["stop"] == {"use": "early-stop", "patience": 3, "threshold": 1e-3}
    assert "callbacks" not in build(load(data=CONFIGURED), registry()).resolved
    with pytest.raises(ConfigError, match="early-stop") as wrong:
        build(load(data={**CONFIGURED, "callbacks": {"stop": "early-stp"}}), registry())
    assert "callbacks.stop" in str(wrong.value)
