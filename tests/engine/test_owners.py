"""Which process computes with which block: the map, and how it shares out work and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import curvlab
from curvlab.config import build, build_method, build_part, load
from curvlab.engine.arms import Arms
from curvlab.engine.inspection import inspect
from curvlab.engine.method import Method
from curvlab.engine.owners import Owners, owners_of
from curvlab.engine.state import nbytes
from curvlab.errors import ConfigError
from curvlab.linalg.flops import flops
from curvlab.model.partition import partition
from curvlab.objectives.ranks import PlannedRanks
from curvlab.precision.full import Full
from curvlab.protocols.backend import Backend
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.tasks.fashion_vit import FashionVit
from tests.limits.registered import registry


def method_of(name: str) -> Method:
    return build_method(registry(), name, {})


def owners(method: Method, blocks: Blocks, size: int, rank: int = 0) -> Owners:
    """As an optimizer of rank ``rank`` finds them."""
    part = method.preconditioner
    found = owners_of("owner", PlannedRanks(None, size, rank), method, lambda b: bool(part.refuses(b)))
    assert found is not None
    found.extend(blocks.members)
    return found


def vit(method: Method) -> tuple[Blocks, Evaluation, Context]:
    """The transformer of Fashion-MNIST, its blocks under a method, and what a step of 16 images finds."""
    torch.manual_seed(0)
    model = FashionVit().model()
    blocks = partition(model, method.preconditioner.joins)
    ctx = Context(0, 1e-3, Full(), torch.Generator())
    x, y = torch.randn(16, 1, 28, 28), torch.randint(10, (16,))
    seen = curvlab.objective(model, nn.CrossEntropyLoss(), x, y).evaluate(method.needs(0), blocks, ctx)
    return blocks, seen, ctx


def spent(method: Method, blocks: Blocks, seen: Evaluation, ctx: Context, held: Any) -> tuple[int, int]:
    """Flops of the curvature in a step that observes and refreshes, and bytes of state."""
    arms = Arms("method", method, ctx.backend, ctx.generator, lambda event: None, held)
    arms.assign(blocks, blocks.layout.names, lambda block: ())

    def step() -> None:
        for arm in arms.members:
            if arm.idle:
                continue
            part, own, mine = (
                arm.method.preconditioner,
                arm.state.preconditioner,
                seen.restrict(arm.mine.layout),
            )
            part.observe(own, mine, ctx)
            part.refresh(own, ctx)
            if part.ready(own):
                part.apply(own, mine.gradient, ctx)

    return flops(step), sum(nbytes(arm.state) for arm in arms.members)


@pytest.mark.parametrize("name", ["kfac", "singd", "shampoo"])
def test_work_and_memory_of_a_process_fall_as_processes_are_added(name: str) -> None:
    """On the ViT: at most 0.6 of one process's with two, 0.35 with four."""
    method = method_of(name)
    blocks, seen, ctx = vit(method)
    alone = spent(method, blocks, seen, ctx, lambda blocks: blocks)
    for size, share in ((2, 0.6), (4, 0.35)):
        of_ranks = [
            spent(method, blocks, seen, ctx, owners(method, blocks, size, rank).mine) for rank in range(size)
        ]
        assert sum(work for work, _ in of_ranks) == pytest.approx(alone[0], rel=1e-6)
        assert max(work for work, _ in of_ranks) <= share * alone[0]
        assert max(held for _, held in of_ranks) <= share * alone[1]


def test_the_map_follows_from_names_shapes_and_settings_alone() -> None:
    """Every process finds the same, whatever the order of blocks; blocks that come later change nothing."""
    method = method_of("kfac")
    torch.manual_seed(0)
    blocks = partition(nn.Sequential(*(nn.Linear(k, k + 3) for k in range(3, 12))), lambda name: True)
    first = owners(method, blocks, 3)
    assert first.of == owners(method, blocks, 3, rank=2).of
    again = Owners(first.ranks, first.work)
    again.extend(reversed(blocks.members))
    assert again.of == first.of
    assert set(first.of.values()) == {0, 1, 2}
    later = Owners(first.ranks, first.work)
    later.extend(blocks.members[:5])
    before = dict(later.of)
    later.extend(blocks.members)
    assert before.items() <= later.of.items()


@pytest.mark.parametrize("name", ["hf-gn", "lbfgs", "cg-fac", "ksd", "lm"])
def test_methods_that_treat_blocks_together_keep_them_together(name: str) -> None:
    method, ranks = method_of(name), PlannedRanks(None, 2)
    assert owners_of("auto", ranks, method, lambda b: False) is None
    with pytest.raises(ConfigError, match='placement = "owner" shares the blocks out'):
        owners_of("owner", ranks, method, lambda b: False)


def test_a_dry_run_shows_what_each_process_would_hold() -> None:
    config = {"task": {"use": "digits"}, "method": {"use": "kfac"}, "run": {"steps": 3}}
    plan = build(load(data=config))
    alone, found = inspect(plan), inspect(plan, 3)
    assert not alone.shares
    assert sorted(n for share in found.shares for n in share.blocks) == sorted(
        {c.block for c in found.coverage}
    )
    assert sum(share.work for share in found.shares) == pytest.approx(1.0)
    assert sum(share.sent_bytes for share in found.shares) == found.parameter_bytes
    assert sum(share.state_bytes for share in found.shares) == pytest.approx(alone.state_bytes, abs=100)
    replicated = build(load(data={**config, "run": {"steps": 3, "placement": "replicate"}}))
    assert not inspect(replicated, 3).shares


def test_processes_that_share_blocks_out_round_by_numbers_of_their_own() -> None:
    """And those that all hold the same, by the same numbers; a step that is made again rounds alike."""

    def drawn(share: int, step: int = 3) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        backend = build_part(registry(), Backend, "bfloat16", {"parameter_write": "stochastic"})
        arms = Arms("method", method_of("sgd"), backend, generator, lambda event: None)
        arms.share = share
        arms.begin(step)
        assert arms.storage.noise is not None
        return torch.rand(8, generator=arms.storage.noise)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert not torch.equal(drawn(1), drawn(1, step=4))


def test_another_word_is_refused_and_one_process_owns_all() -> None:
    method = method_of("kfac")
    with pytest.raises(ConfigError, match='unknown placement "everywhere"'):
        owners_of("everywhere", PlannedRanks(None, 2), method, lambda b: False)
    assert owners_of("auto", None, method, lambda b: False) is None
    assert owners_of("replicate", PlannedRanks(None, 2), method, lambda b: False) is None
