"""Second moments in an eigenbasis: what they are, when they turn, and what the damping adds to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from curvlab.errors import NotPositiveDefinite, UnsupportedEvidence
from curvlab.linalg.vectors import BlockVector
from curvlab.parts import eigenbasis
from curvlab.parts.eigenbasis import Eigenbasis, EigenState
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels, Needs
from tests.parts.layers import LAYERS, FactorState, LastFactors, evidence
from tests.parts.vectors import DTYPE, context, passed, vector

LAMBDA = 0.2


def per_example(seen: Evaluation, name: str) -> Tensor:
    """Gradients of single examples and vectors, ``[v, n, o, i]``."""
    (stats,) = seen.layers[Labels.DATA][name]
    return torch.einsum("vnso,nsi->vnoi", stats.grads, stats.inputs)


def moments_in(state: EigenState, seen: Evaluation, name: str) -> Tensor:
    """The slow twin: rotate each example's gradient, square, average."""
    basis = state.basis[name]
    rotated = basis.Q_B.mT @ per_example(seen, name) @ basis.Q_A
    return rotated.square().sum(0).mean(0)


def observed(part: Eigenbasis, passes: list[Evaluation]) -> EigenState:
    state = part.init(vector(layout=LAYERS), context())
    for step, seen in enumerate(passes):
        part.observe(state, seen, context(step, LAMBDA))
    return state


@pytest.mark.parametrize(("s", "v"), [(1, 1), (1, 3), (4, 1), (4, 3)])
def test_moments_are_mean_squares_of_single_examples_gradients_in_the_basis(s: int, v: int) -> None:
    seen = evidence(1, s=s, v=v)
    state = observed(Eigenbasis(LastFactors()), [seen])
    for name in LAYERS.names:
        torch.testing.assert_close(state.moments[name], moments_in(state, seen, name))


def test_moments_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = evidence(1, s=4, v=2)
    whole = observed(Eigenbasis(LastFactors()), [seen]).moments.flat.clone()
    monkeypatch.setattr(eigenbasis, "CHUNK", 50)
    torch.testing.assert_close(observed(Eigenbasis(LastFactors()), [seen]).moments.flat, whole)


def test_a_basis_is_orthogonal_and_diagonalises_its_factor() -> None:
    part = Eigenbasis(LastFactors())
    state = observed(part, [evidence(1)])
    for name, (o, i) in LAYERS.shapes.items():
        basis = state.basis[name]
        for Q, factor, d in ((basis.Q_B, state.estimate.B[name], o), (basis.Q_A, state.estimate.A[name], i)):
            torch.testing.assert_close(Q.mT @ Q, torch.eye(d, dtype=DTYPE))
            turned = Q.mT @ factor @ Q
            torch.testing.assert_close(turned, torch.diag(turned.diagonal()))


def test_moments_average_with_normalized_weights_while_the_basis_stands() -> None:
    part = Eigenbasis(LastFactors(), decay=0.8, refresh_every=100)
    passes = [evidence(k) for k in range(4)]
    state = observed(part, passes)
    weights = torch.tensor([0.8 ** (3 - k) for k in range(4)], dtype=DTYPE)
    for name in LAYERS.names:
        each = torch.stack([moments_in(state, seen, name) for seen in passes])
        torch.testing.assert_close(
            state.moments[name], torch.einsum("k,koi->oi", weights / weights.sum(), each)
        )


@pytest.mark.parametrize(("observe", "refresh"), [(1, 1), (1, 3), (2, 4)])
def test_moments_and_basis_change_each_on_their_cadence(observe: int, refresh: int) -> None:
    part = Eigenbasis(LastFactors(), observe_every=observe, refresh_every=refresh)
    state = part.init(vector(layout=LAYERS), context())
    for step in range(9):
        before, basis = state.moments.flat.clone(), dict(state.basis)
        part.observe(state, evidence(step), context(step))
        assert bool(part.needs(step).layers) == (step % observe == 0)
        assert (not torch.equal(state.moments.flat, before)) == (step % observe == 0)
        assert all((state.basis[n] is not basis[n]) == (step % refresh == 0) for n in basis)
        assert state.estimate.observed == step // observe + 1
        assert state.observed == dict.fromkeys(basis, step // observe + 1)


def test_a_block_that_is_first_seen_later_has_the_moments_of_that_pass() -> None:
    """An expert without tokens in the first steps: its average begins with its first statistics."""
    part, seen = Eigenbasis(LastFactors(), decay=0.9, refresh_every=100), evidence(1)
    ((kind, layers),) = seen.layers.items()
    late = next(iter(layers))
    without = replace(seen, layers={kind: {n: s for n, s in layers.items() if n != late}})
    state = observed(part, [without, without, seen])
    torch.testing.assert_close(state.moments[late], moments_in(state, seen, late))


def test_between_observations_gradients_may_stay_factored() -> None:
    part = Eigenbasis(LastFactors(), observe_every=3)
    assert part.needs(1) == Needs(factored=True)


def test_a_turning_basis_carries_the_moments_over_as_a_diagonal_is_projected() -> None:
    """Slow twin: the diagonal in the old basis as a matrix, rotated into the new one, its diagonal taken."""
    part = Eigenbasis(LastFactors(), decay=0.9)
    state = observed(part, [evidence(1)])
    old = {n: (state.basis[n].Q_B, state.basis[n].Q_A, state.moments[n].clone()) for n in LAYERS.names}
    second = evidence(2)
    part.observe(state, second, context(1))
    weight = 0.1 / (1 - 0.9**2)
    for name in LAYERS.names:
        Q_B, Q_A, S = old[name]
        Q, P = torch.kron(Q_B, Q_A), torch.kron(state.basis[name].Q_B, state.basis[name].Q_A)
        carried = (P.mT @ Q @ torch.diag(S.flatten()) @ Q.mT @ P).diagonal().view(S.shape)
        expected = carried + weight * (moments_in(state, second, name) - carried)
        torch.testing.assert_close(state.moments[name], expected)


def test_the_update_divides_by_moments_plus_lambda_in_the_basis() -> None:
    part, v = Eigenbasis(LastFactors()), vector(3, LAYERS)
    state = observed(part, [evidence(1), evidence(2)])
    x = part.apply(state, v, context(damping=LAMBDA)).x
    for name in LAYERS.names:
        Q = torch.kron(state.basis[name].Q_B, state.basis[name].Q_A)
        C = Q @ torch.diag(state.moments[name].flatten()) @ Q.mT
        damped = C + LAMBDA * torch.eye(len(C), dtype=DTYPE)
        torch.testing.assert_close(x[name].flatten(), torch.linalg.solve(damped, v[name].flatten()))


def test_of_all_diagonals_in_the_basis_the_moments_are_nearest_to_the_curvature() -> None:
    part, seen = Eigenbasis(LastFactors()), evidence(1)
    state = observed(part, [seen])
    for name in LAYERS.names:
        each = per_example(seen, name)[0].flatten(1)
        F = each.mT @ each / seen.examples
        Q = torch.kron(state.basis[name].Q_B, state.basis[name].Q_A)
        best = (Q.mT @ F @ Q).diagonal()
        torch.testing.assert_close(state.moments[name].flatten(), best)


def test_apply_changes_neither_vector_nor_state() -> None:
    part, v = Eigenbasis(LastFactors()), vector(3, LAYERS)
    state = observed(part, [evidence(1)])
    kept, moments = v.flat.clone(), state.moments.flat.clone()
    part.apply(state, v, context(damping=LAMBDA))
    assert torch.equal(v.flat, kept)
    assert torch.equal(state.moments.flat, moments)


@dataclass(frozen=True)
class Undemanding(LastFactors):
    """Learns nothing, so that it takes any evidence."""

    def observe(self, state: FactorState, seen: Evaluation, ctx: Context) -> None:
        return None


def test_evidence_that_makes_no_moments_is_refused_in_words() -> None:
    part, seen = Eigenbasis(Undemanding()), evidence(1)
    stats = seen.layers[Labels.DATA]["0"]
    for terms, says in [
        (
            (LayerStats(stats[0].inputs, None),),
            'eigenbasis on block "0": expected output gradients, got labels',
        ),
    ]:
        state = part.init(vector(layout=LAYERS), context())
        with pytest.raises(UnsupportedEvidence, match=says):
            part.observe(state, replace(seen, layers={Labels.DATA: {"0": terms}}), context())


def test_a_factor_that_is_not_finite_is_named_by_its_block() -> None:
    part, seen = Eigenbasis(LastFactors()), evidence(1)
    seen.layers[Labels.DATA]["2"][0].inputs[0] = torch.inf
    with pytest.raises(NotPositiveDefinite, match='block "2"'):
        observed(part, [seen])


def test_before_anything_was_seen_basis_and_moments_are_the_identity() -> None:
    part, v = Eigenbasis(LastFactors()), vector(3, LAYERS)
    state = part.init(v, context())
    x: BlockVector = part.apply(state, v, context(damping=0.5)).x
    torch.testing.assert_close(x.flat, v.flat / 1.5)
    assert passed(v).layers == {}


def test_the_basis_turns_on_observing_steps_alone() -> None:
    part = Eigenbasis(LastFactors(), observe_every=2, refresh_every=3)
    state = part.init(vector(layout=LAYERS), context())
    turned = []
    for step in range(8):
        before = dict(state.basis)
        part.observe(state, evidence(step), context(step))
        if all(state.basis[n] is not before[n] for n in before):
            turned.append(step)
    assert turned == [0, 6]
