"""What training owes, whoever runs the loop: the result depends on the loss, not on how it is handed over."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.model.readers.linear import LinearReader
from curvlab.protocols.needs import Labels
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, deep_linear
from curvlab.testing.reference import block_of, damped_solve, ggn, gradient, mean_loss, reference_context
from plugins.singd.tests.bare import IKFAC, INGD, factors, matrices, optimizer, singd, theta, two_rules

BATCH, STEPS = 16, 7

everys = pytest.mark.parametrize("every", [1, 3])


def network(dtype: torch.dtype = DTYPE) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def batch(k: int, dtype: torch.dtype = DTYPE) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(k)
    x = torch.randn(BATCH, 6, generator=g, dtype=DTYPE)
    return x.to(dtype), torch.randint(0, 3, (BATCH,), generator=g)


def make(model: nn.Module, rule: dict[str, Any], **others: Any) -> CurvatureOptimizer:
    outer = {k: others.pop(k) for k in ("reduction", "momentum_of_updates") if k in others}
    part = singd(**{**rule, **others})
    momentum = outer.pop("momentum_of_updates", 0.5)
    return optimizer(model, part, momentum=momentum, weight_decay=1e-2, **outer)


def backward(model: nn.Module, k: int, parts: Sequence[int] = (BATCH,), scale: float = 1.0) -> None:
    """The gradient of one batch, in parts whose losses are weighted by their share."""
    for x, y in zip(*(t.split(list(parts)) for t in batch(k, next(model.parameters()).dtype)), strict=True):
        (nn.functional.cross_entropy(model(x), y) * (len(y) / BATCH * scale)).backward()


def train(
    model: nn.Module, ours: CurvatureOptimizer, steps: range = range(STEPS), parts: Sequence[int] = (BATCH,)
) -> None:
    for k in steps:
        ours.zero_grad()
        backward(model, k, parts)
        ours.step()


def assert_same(one: CurvatureOptimizer, other: CurvatureOptimizer) -> None:
    """θ, K and C up to the rounding of a few steps."""
    pairs = {**matrices(other), "θ": theta(other.model)}
    for name, found in {**matrices(one), "θ": theta(one.model)}.items():
        assert_close(found, pairs[name], dimension=BATCH, condition=100.0, what=name)


def identical(one: CurvatureOptimizer, other: CurvatureOptimizer) -> bool:
    """θ and every state, bit for bit."""
    a, b = one.snapshot(), other.snapshot()
    same = a[0].keys() == b[0].keys() and all(torch.equal(t, b[0][k]) for k, t in a[0].items())
    return same and a[1] == b[1] and torch.equal(theta(one.model), theta(other.model))


# accumulation


@two_rules
@everys
@pytest.mark.parametrize("parts", [(8, 8), (4, 4, 4, 4), (7, 7, 2)], ids=str)
def test_accumulated_passes_are_one_batch(rule: dict[str, Any], every: int, parts: tuple[int, ...]) -> None:
    whole, cut = (make(network(), rule, every=every) for _ in range(2))
    train(whole.model, whole)
    train(cut.model, cut, parts=parts)
    assert_same(cut, whole)


@two_rules
@everys
@pytest.mark.parametrize("micro", [None, 8, 4, 7])
def test_an_objective_in_micro_batches_is_one_batch_of_a_plain_loop(
    rule: dict[str, Any], every: int, micro: int | None
) -> None:
    plain, asked = (make(network(), rule, every=every) for _ in range(2))
    train(plain.model, plain)
    for k in range(STEPS):
        asked.step(curvlab.objective(asked.model, nn.CrossEntropyLoss(), *batch(k), micro_batch=micro))
    assert_same(asked, plain)


@two_rules
@pytest.mark.parametrize("parts", [(16,), (7, 7, 2)], ids=str)
def test_a_sum_of_losses_trains_as_their_mean(rule: dict[str, Any], parts: tuple[int, ...]) -> None:
    mean, total = make(network(), rule), make(network(), rule, reduction="sum")
    train(mean.model, mean)
    for k in range(STEPS):
        total.zero_grad()
        for x, y in zip(*(t.split(list(parts)) for t in batch(k)), strict=True):
            nn.functional.cross_entropy(total.model(x), y, reduction="sum").backward()
        total.step()
    assert_same(total, mean)


# gradient scaling


def scaled(
    rule: dict[str, Any], every: int, scaler: torch.amp.GradScaler, spoilt: Sequence[int] = ()
) -> CurvatureOptimizer:
    """Trained in float32 under a scaler; the losses of the ``spoilt`` batches are infinite."""
    ours = make(network(torch.float32), rule, every=every)
    for k in range(STEPS):
        ours.zero_grad()
        x, y = batch(k, torch.float32)
        loss = nn.functional.cross_entropy(ours.model(x), y) * (torch.inf if k in spoilt else 1.0)
        scaler.scale(loss).backward()
        scaler.step(ours)
        scaler.update()
    return ours


def grad_scaler(scale: float, interval: int = 1000) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)


@two_rules
@everys
@pytest.mark.parametrize(
    "scaler", [(1.0, 1000), (2.0**10, 1000), (2.0**10, 2)], ids=["1", "2^10", "growing from 2^10"]
)
def test_the_scale_of_a_scaler_is_never_seen(
    rule: dict[str, Any], every: int, scaler: tuple[float, int]
) -> None:
    """Bit for bit: powers of two round nowhere."""
    plain = make(network(torch.float32), rule, every=every)
    train(plain.model, plain)
    theirs = grad_scaler(*scaler)
    assert identical(scaled(rule, every, theirs), plain)
    assert theirs.get_scale() > scaler[0] or scaler[1] == 1000


@two_rules
@everys
@pytest.mark.parametrize("spoilt", [(0,), (3,), (4, 5)], ids=str)
def test_a_skipped_step_was_never_taken(rule: dict[str, Any], every: int, spoilt: tuple[int, ...]) -> None:
    """Bit for bit as if those batches had not been, so that no update of K and C is lost to a skip."""
    skipping = scaled(rule, every, grad_scaler(2.0**10), spoilt)
    plain = make(network(torch.float32), rule, every=every)
    for k in range(STEPS):
        if k not in spoilt:
            train(plain.model, plain, range(k, k + 1))
    assert skipping.steps == STEPS - len(spoilt)
    assert identical(skipping, plain)


@two_rules
def test_a_skipped_step_leaves_every_state_bit_for_bit(rule: dict[str, Any]) -> None:
    ours, scaler = make(network(torch.float32), rule), grad_scaler(2.0**10)
    train(ours.model, ours, range(2))
    before = {name: t.clone() for name, t in ours.snapshot()[0].items()}
    x, y = batch(2, torch.float32)
    ours.zero_grad()
    scaler.scale(nn.functional.cross_entropy(ours.model(x), y) * torch.inf).backward()
    scaler.step(ours)
    after = ours.snapshot()[0]
    assert any(".m_K." in name for name in after) is bool(rule["momentum"])
    assert all(torch.equal(t, after[name]) for name, t in before.items())


# cadence


@pytest.mark.parametrize("every", [1, 3, 10])
def test_layers_are_read_on_the_steps_that_update_and_on_no_other(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = LinearReader.inputs

    def counted(self: LinearReader, module: nn.Module, x: Tensor) -> Tensor:
        reads.append(1)
        return read(self, module, x)

    monkeypatch.setattr(LinearReader, "inputs", counted)
    ours, by_step = make(network(), INGD, every=every), []
    for k in range(STEPS):
        before = len(reads)
        train(ours.model, ours, range(k, k + 1))
        by_step.append(len(reads) - before)
    assert by_step == [3 if k % every == 0 else 0 for k in range(STEPS)]
    assert all(f.updates == len(range(0, STEPS, every)) for f in factors(ours).values())


@two_rules
def test_between_updates_the_factors_rest(rule: dict[str, Any]) -> None:
    ours = make(network(), rule, every=3)
    train(ours.model, ours, range(1))
    first = matrices(ours)
    for k in (1, 2):
        train(ours.model, ours, range(k, k + 1))
        assert all(torch.equal(M, first[name]) for name, M in matrices(ours).items())
    train(ours.model, ours, range(3, 4))
    assert not any(torch.equal(M, first[name]) for name, M in matrices(ours).items())


def look_without_gradients(model: nn.Module) -> None:
    with torch.no_grad():
        model.eval()(10 * batch(99)[0])
        model.train()


def look_and_discard(model: nn.Module) -> None:
    model(10 * batch(99)[0])


@two_rules
@pytest.mark.parametrize("look", [look_without_gradients, look_and_discard])
def test_a_forward_pass_that_goes_nowhere_leaves_nothing_behind(
    rule: dict[str, Any], look: Callable[[nn.Module], None]
) -> None:
    plain, watched = (make(network(), rule, every=2) for _ in range(2))
    train(plain.model, plain)
    for k in range(STEPS):
        look(watched.model)
        watched.zero_grad()
        look(watched.model)
        backward(watched.model, k)
        look(watched.model)
        watched.step()
    assert identical(watched, plain)
    if look is look_without_gradients:
        look(watched.model)
        assert not watched.ambient.ledger.accumulated.entries


# positions


@two_rules
@pytest.mark.parametrize("sharing", ["expand", "reduce", "auto"])
def test_one_position_is_no_sharing(rule: dict[str, Any], sharing: str) -> None:
    flat, one = make(network(), rule, sharing="expand"), make(network(), rule, sharing=sharing)
    train(flat.model, flat)
    for k in range(STEPS):
        x, y = batch(k)
        one.zero_grad()
        nn.functional.cross_entropy(one.model(x.unsqueeze(1)).squeeze(1), y).backward()
        one.step()
    assert_same(one, flat)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("positions", [1, 2, 5])
def test_the_input_of_the_bias_is_one(sharing: str, positions: int) -> None:
    """Its second moment is 1 however many positions: undamped IKFAC leaves that entry of K at 1."""
    model = network()
    ours = optimizer(model, singd(Diagonal(), sharing=sharing, **IKFAC), damping=0.0)
    for k in range(3):
        x, y = batch(k)
        ours.zero_grad()
        x = x.unsqueeze(1) * torch.linspace(0.5, 1.5, positions, dtype=DTYPE)[:, None]
        nn.functional.cross_entropy(model(x).mean(1), y).backward()
        ours.step()
    for name, f in factors(ours).items():
        K = f.K.dense().diagonal()
        assert_close(K[-1], 1.0, dimension=BATCH * positions, what=name)
        assert float((K[:-1] - 1).abs().max()) > 1e-3


# checkpoints


def resumed(ours: CurvatureOptimizer, rule: dict[str, Any], every: int) -> CurvatureOptimizer:
    """A new optimizer on a copy of the model, from what was saved to a file."""
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    new = make(copy.deepcopy(ours.model), rule, every=every)
    new.load_state_dict(torch.load(file, weights_only=True))
    return new


@two_rules
@everys
def test_saved_between_backward_passes_the_step_starts_again(rule: dict[str, Any], every: int) -> None:
    """What a step has accumulated is not its state: gradients and captured rows live until ``step()``.

    A checkpoint made in the middle is, bit for bit, that of the last step; who resumes from it begins
    the interrupted step anew and goes on as if there had been no interruption.
    """
    parts = (7, 7, 2)
    ours = make(network(), rule, every=every)
    train(ours.model, ours, range(3), parts)
    at_rest = {name: t.clone() for name, t in ours.snapshot()[0].items()}
    ours.zero_grad()
    x, y = (t.split(list(parts)) for t in batch(3))
    (nn.functional.cross_entropy(ours.model(x[0]), y[0]) * (7 / BATCH)).backward()
    midway = resumed(ours, rule, every)
    assert all(torch.equal(t, at_rest[name]) for name, t in midway.snapshot()[0].items())
    for k in (1, 2):
        (nn.functional.cross_entropy(ours.model(x[k]), y[k]) * (parts[k] / BATCH)).backward()
    ours.step()
    train(ours.model, ours, range(4, STEPS), parts)
    train(midway.model, midway, range(3, STEPS), parts)
    assert identical(midway, ours)


@two_rules
def test_a_state_loaded_into_a_running_optimizer_replays_to_the_bit(rule: dict[str, Any]) -> None:
    """Rewinding in mid-accumulation: ``zero_grad()`` drops what the abandoned step had captured."""
    ours = make(network(), rule, every=2)
    train(ours.model, ours, range(2))
    state, weights = copy.deepcopy(ours.state_dict()), copy.deepcopy(ours.model.state_dict())
    train(ours.model, ours, range(2, STEPS))
    end = theta(ours.model)
    backward(ours.model, 50, (8, 8))
    ours.load_state_dict(state)
    ours.model.load_state_dict(weights)
    train(ours.model, ours, range(2, STEPS))
    assert torch.equal(theta(ours.model), end)


# labels


@two_rules
@pytest.mark.parametrize("labels", [Labels.DATA, Labels.MODEL, Labels.EXACT], ids=str)
def test_every_kind_of_label_trains(rule: dict[str, Any], labels: Labels) -> None:
    ours, x = make(network(), rule, labels=labels, every=2, samples=2), batch(0)[0]
    y, losses = x[:, :3].argmax(-1), []
    for _ in range(40):
        loss = ours.step(curvlab.objective(ours.model, nn.CrossEntropyLoss(), x, y))
        assert loss is not None
        losses.append(float(loss))
    assert ours.needs(0).layers == {labels}
    assert not ours.needs(1).layers
    assert ours.needs(0).samples == (2 if labels is Labels.MODEL else 0)
    assert losses[-1] < 0.5 * losses[0]


def test_kinds_of_labels_are_different_curvature() -> None:
    ends = []
    for labels in (Labels.DATA, Labels.MODEL, Labels.EXACT):
        ours = make(network(), INGD, labels=labels)
        for k in range(3):
            ours.step(curvlab.objective(ours.model, nn.CrossEntropyLoss(), *batch(k)))
        ends.append(matrices(ours)["C of 4"])
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(ends, [*ends[1:], ends[0]], strict=True))


@pytest.mark.parametrize("setting", ["none", "expand", "reduce"])
def test_undamped_ingd_at_rest_is_the_natural_gradient_of_a_deep_linear_net(setting: Any) -> None:
    """There the Gauss–Newton block of a layer is B ⊗ A, which exact labels see: (C Cᵀ) g (K Kᵀ) solves it."""
    positions = 1 if setting == "none" else 3
    problem = deep_linear(12, setting=setting, positions=positions, widths=(3, 2, 2))
    model = problem.model()
    ours = optimizer(model, singd(lr=0.2, labels=Labels.EXACT, **INGD), lr=0.0, damping=0.0)
    for _ in range(150):
        ours.step(problem.objective(model))
    blocks = problem.blocks(model)
    G = ggn(model, problem.criterion, problem.inputs, problem.targets, blocks)
    g = gradient(mean_loss(problem.criterion, model(problem.inputs), problem.targets), blocks)
    v = blocks.layout.zeros(like=g)
    v.flat.copy_(g)
    arm = ours.arms[0]
    x = arm.method.preconditioner.apply(arm.state.preconditioner, v, reference_context()).x
    for name, block in v.items():
        truth = damped_solve(block_of(G, blocks.layout, name), 0.0, block.flatten())
        assert_close(x[name].flatten(), truth, dimension=40, condition=1e4, what=name)
