"""Unification and pruning of blocks: the projection, ADMM around any method, and fine-tuning in the set."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.config import build, build_method, load
from curvlab.engine.companions import Companions
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.run import train_plan
from curvlab.errors import ConfigError
from curvlab.precision.full import Full
from curvlab.reporting.runlog import RunLog
from curvlab.testing.asserts import assert_close
from curvlab.testing.conformance import CallbackConformance
from curvlab.testing.problems import normal
from curvlab_compress.block_admm import BlockAdmm
from curvlab_compress.blocks import (
    Goal,
    Tiling,
    cheapest,
    chosen,
    losses,
    magnitudes,
    projected,
    signs_of,
    tangent,
)
from plugins.compress.tests.networks import plain
from tests.limits.registered import registry

#: weights whose blocks are cut off at one edge, at both, at none, and one larger than the weight
TILINGS = [
    Tiling((4, 6), 2, 3),
    Tiling((5, 7), 2, 3),
    Tiling((3, 8), 1, 5),
    Tiling((4, 2, 3, 3), 3, 4),
    Tiling((2, 3), 4, 4),
]
GOALS: list[Goal] = ["unify", "prune"]


class TestSoft(CallbackConformance):
    def make(self) -> BlockAdmm:
        return BlockAdmm(rho=0.3, ratio=0.5)


class TestHard(CallbackConformance):
    def make(self) -> BlockAdmm:
        return BlockAdmm(goal="prune", ratio=0.5, rows=2, columns=3, harden_after=1)


class TestHardMagnitudes(CallbackConformance):
    def make(self) -> BlockAdmm:
        return BlockAdmm(ratio=0.5, among="network", every_steps=1, harden_after=1)


def weight(tiling: Tiling, seed: int) -> Tensor:
    return normal(*tiling.shape, seed=seed)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("tiling", TILINGS)
def test_the_projection_is_idempotent_keeps_signs_and_leaves_other_blocks(tiling: Tiling, goal: Goal) -> None:
    W = weight(tiling, 0)
    W.flatten()[0] = 0.0  # has a sign too
    assert torch.equal(tiling.matrix(tiling.tiles(W)), W)
    mask = chosen(W, tiling, 0.6, goal)
    assert int(mask.sum()) == math.floor(0.6 * tiling.count)
    P = projected(W, tiling, mask, goal)
    again = projected(P, tiling, chosen(P, tiling, 0.6, goal), goal)
    assert_close(again, P, scale=1.0)
    assert torch.equal(tiling.tiles(P)[~mask], tiling.tiles(W)[~mask])
    assert bool(((P == 0) | (signs_of(P) == signs_of(W))).all())
    inside = tiling.inside(W).bool()
    for block, within in zip(tiling.tiles(P)[mask], inside[mask], strict=True):
        assert len(block[within].abs().unique()) == 1
    stored = {float(x) for x in P.abs().flatten()} - {0.0}
    assert len(stored) <= magnitudes(tiling, mask, goal)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("tiling", TILINGS[:3])
def test_no_other_choice_of_blocks_or_magnitudes_is_nearer(tiling: Tiling, goal: Goal) -> None:
    W, count = weight(tiling, 1), math.floor(0.5 * tiling.count)
    mask = chosen(W, tiling, 0.5, goal)
    found = float((projected(W, tiling, mask, goal) - W).norm())
    for blocks in itertools.combinations(range(tiling.count), count):
        other = torch.zeros_like(mask)
        other[list(blocks)] = True
        P = projected(W, tiling, other, goal)
        assert found <= float((P - W).norm()) + 1e-12
        if goal == "unify":  # of these blocks, the mean of |w| is the best magnitude
            scale = torch.where(tiling.matrix(other.unsqueeze(1).to(W) * tiling.inside(W)) > 0, 1.01, 1.0)
            assert float((P - W).norm()) <= float((P * scale - W).norm()) + 1e-12
    distances = [
        float((projected(W, tiling, chosen(W, tiling, r / 10, goal), goal) - W).norm()) for r in range(11)
    ]
    assert distances == sorted(distances)


@pytest.mark.parametrize("goal", GOALS)
def test_with_fixed_blocks_and_signs_no_two_weights_move_apart(goal: Goal) -> None:
    tiling, signs = TILINGS[1], signs_of(weight(TILINGS[1], 9))
    mask = torch.arange(tiling.count) % 2 == 0
    for seed in range(20):
        X, Y = weight(tiling, 2 * seed), weight(tiling, 2 * seed + 1)
        P, Q = (projected(W, tiling, mask, goal, signs) for W in (X, Y))
        assert float((P - Q).norm()) <= float((X - Y).norm()) * (1 + 1e-12)
        assert_close(projected(P, tiling, mask, goal, signs), P, scale=1.0)


@pytest.mark.parametrize("goal", GOALS)
def test_no_other_choice_of_as_many_blocks_among_two_weights_is_nearer(goal: Goal) -> None:
    tilings = [Tiling((2, 3), 1, 3), Tiling((3, 2), 1, 2)]
    both = [weight(t, 1) * scale for t, scale in zip(tilings, (1.0, 0.3), strict=True)]
    masks = cheapest([losses(W, t, goal) for W, t in zip(both, tilings, strict=True)], 0.6)
    assert sum(int(m.sum()) for m in masks) == 3

    def off(choice: list[Tensor]) -> float:
        each = zip(both, tilings, choice, strict=True)
        return sum(float((projected(W, t, m, goal) - W).square().sum()) for W, t, m in each)

    for blocks in itertools.combinations(range(5), 3):
        other = torch.zeros(5, dtype=torch.bool)
        other[list(blocks)] = True
        assert off(masks) <= off([other[:2], other[2:]]) + 1e-12


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("tiling", TILINGS)
def test_the_tangent_is_the_derivative_of_the_projection_at_a_weight_in_the_set(
    tiling: Tiling, goal: Goal
) -> None:
    W, G, h = weight(tiling, 0), weight(tiling, 1), 1e-6
    mask, signs = chosen(W, tiling, 0.6, goal), signs_of(W)
    here = projected(W, tiling, mask, goal, signs)
    there, back = (projected(here + s * G, tiling, mask, goal, signs) for s in (h, -h))
    T = tangent(G, tiling, mask, goal, signs)
    assert float((T - (there - back) / (2 * h)).norm()) <= 1e-8 * float(G.norm())
    assert_close(tangent(T, tiling, mask, goal, signs), T, scale=1.0)


def test_the_end_of_an_epoch_is_admms_update_of_z_and_u() -> None:
    model, part = plain(), BlockAdmm(ratio=0.5, rho=0.3, every=2)
    state = part.init(model)
    name, p = next((n, p) for n, p in model.named_parameters() if n == "2.weight")
    tiling, U = Tiling(tuple(p.shape), 1, 8), torch.zeros_like(p)
    for epoch in range(1, 5):
        p.data.add_(normal(*p.shape, seed=epoch), alpha=0.1)
        part.epoch_ended(state, model, epoch)
        if epoch % 2 == 0:
            W = p.detach()
            Z = projected(W + U, tiling, chosen(W + U, tiling, 0.5, "unify"), "unify")
            U = U + W - Z
            assert_close(state.weights[name].Z, Z)
            assert_close(state.weights[name].U, U, scale=1.0)
    at = dict(model.named_parameters())
    own = sum(0.15 * (at[n] - s.Z + s.U).square().sum() for n, s in state.weights.items())
    assert_close(part.penalty(state, model, at), own)


def test_admm_begins_after_the_warm_start_and_updates_every_so_many_steps() -> None:
    model = plain()
    part = BlockAdmm(ratio=0.5, rho=0.3, among="network", start_after=1, every_steps=2)
    state, tilings = part.init(model), {}
    at = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    for name, p in at.items():
        tilings[name] = Tiling(tuple(p.shape), 1, 8)

    def nearest(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        masks = cheapest([losses(W, tilings[n], "unify") for n, W in weights.items()], 0.5)
        return {
            n: projected(W, tilings[n], m, "unify") for (n, W), m in zip(weights.items(), masks, strict=True)
        }

    def drift(seed: int) -> dict[str, Tensor]:
        for p in at.values():
            p.data.add_(normal(*p.shape, seed=seed), alpha=0.1)
        with torch.no_grad():
            part.stepped(state, model, 1.0)
        return {n: p.detach().clone() for n, p in at.items()}

    W = drift(0)
    assert part.ridge(state) == {}
    assert float(part.penalty(state, model, at)) == 0.0
    with torch.no_grad():
        part.epoch_ended(state, model, 1)
    Z, U = nearest(W), {n: torch.zeros_like(p) for n, p in at.items()}
    assert part.ridge(state) == dict.fromkeys(at, 0.3)
    for step in (1, 2, 3, 4):
        W = drift(step)
        if step % 2 == 0:
            Z = nearest({n: W[n] + U[n] for n in W})
            U = {n: U[n] + W[n] - Z[n] for n in W}
        for n, split in state.weights.items():
            assert_close(split.Z, Z[n], scale=1.0)
            assert_close(split.U, U[n], scale=1.0)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="harden_after"):
        BlockAdmm(start_after=3, harden_after=2)
    with pytest.raises(ConfigError, match="every_steps"):
        BlockAdmm(every=2, every_steps=5)


def test_the_curvature_damps_the_blocks_of_constrained_weights_and_no_other() -> None:
    model = plain()
    method = build_method(registry(), "kfac", {}, {})
    companions = Companions.of({"blocks": BlockAdmm(rho=0.3, only=("5.*", "2.*"))}, model, method)
    made = CurvatureOptimizer(method, model, backend=Full("float64"), companions=companions)
    arm = made.arms[0]
    assert made.assignment.context(arm, 0).ridge == {"2": 0.3, "5": 0.3}
    hard = BlockAdmm(rho=0.3, harden_after=1)
    state = hard.init(model)
    with torch.no_grad():
        hard.epoch_ended(state, model, 1)
    assert hard.ridge(state) == {}


def configured(method: str, goal: Goal, **run: Any) -> dict[str, Any]:
    callback = {"use": "block-admm", "goal": goal, "columns": 4, "ratio": 0.8}
    if goal == "unify":
        callback |= {"among": "network", "start_after": 1, "every_steps": 3}
    callback["harden_after"] = 2
    return {
        "run": {"epochs": 3, "seed": 0, "threads": 1, **run},
        "task": {"use": "digits", "hidden": [17], "batch_size": 256},
        "method": {"use": method},
        "precision": "bfloat16" if method == "singd" else "float32",
        "callbacks": {"blocks": callback},
        "report": "quiet",
    }


@pytest.mark.parametrize(("method", "goal"), [("kfac", "unify"), ("adamw", "prune"), ("singd", "unify")])
def test_a_run_ends_in_the_set_with_as_many_numbers_as_it_says_and_resumes_bit_for_bit(
    method: str, goal: Goal, tmp_path: Path
) -> None:
    whole = curvlab.train(configured(method, goal), out=tmp_path / "whole")
    said = [json.loads(line) for line in (whole.folder / "events.jsonl").read_text().splitlines()]
    told = [e["detail"] for e in said if e["name"] == "block-admm"]
    assert [t["hard"] for t in told] == [False, True, True]
    weights = {n: p.detach() for n, p in whole.model.named_parameters() if p.dim() > 1}
    distinct = sum(len(p.abs()[p != 0].unique()) for p in weights.values())
    assert distinct <= told[-1]["magnitudes"] < 0.5 * told[-1]["weights"]
    assert told[-1]["distance"] < 1e-6
    short = curvlab.train(configured(method, goal, epochs=2), out=tmp_path / "short")
    plan = build(load(data=configured(method, goal)))
    on = train_plan(plan, out=tmp_path, log=RunLog, resume_from=short.folder)
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, dict(on.model.named_parameters())[name]), name


def test_a_pattern_that_matches_no_weight_is_named() -> None:
    with pytest.raises(ConfigError, match=r"conv\*"):
        BlockAdmm(only=("conv*",)).init(nn.Sequential(nn.Linear(2, 2)))
