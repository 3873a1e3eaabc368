"""Layer statistics of the terms of a problem: what they add up to, and what they are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from curvlab import pde
from curvlab.errors import ConfigError
from curvlab.model.partition import partition
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.testing.asserts import assert_close
from curvlab.testing.reference import reference_context
from tests.pde.networks import Attention, Gated, Positions, Shared
from tests.pde.problems import loss, mlp, model, problem, residuals

ALL = frozenset(Labels)
DRAWN = problem().draw(3)


def seen(
    of: pde.Residuals,
    points: tuple[Tensor, ...] = DRAWN,
    *,
    micro_batch: int | None = None,
    kinds: frozenset[Labels] = ALL,
    every_block: bool = True,
) -> tuple[Evaluation, Blocks]:
    blocks = partition(of, lambda layer: True)
    needs = Needs(layers=kinds, samples=3 if Labels.MODEL in kinds else 0, every_block=every_block)
    found = pde.objective(of, points, micro_batch=micro_batch)
    return found.evaluate(needs, blocks, reference_context()), blocks


def parts(points: tuple[Tensor, ...], *kept: int) -> tuple[Tensor, ...]:
    """The points of some terms; none of the others."""
    return tuple(x if t in kept else x[:0] for t, x in enumerate(points))


NETS = {
    "mlp": mlp,
    "no bias": lambda: mlp(bias=False),
    "gates": lambda: Gated(outputs=1).double(),
    "positions": lambda: Positions(outputs=1).double(),
    "one layer twice": lambda: Shared().double(),
    "norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double(),
    "attention": lambda: Attention(outputs=1).double(),
}
NESTED = ("norm", "attention")

every = pytest.mark.parametrize("name", NETS)


def made(name: str) -> pde.Residuals:
    torch.manual_seed(0)
    return model(NETS[name]())


@every
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_loss_and_gradient_are_those_of_autograd(name: str, micro_batch: int | None) -> None:
    """From rows where a layer is heard, by autograd elsewhere; and without layers."""
    of = made(name)
    expected = loss(of, DRAWN)
    grads = torch.autograd.grad(expected, list(of.parameters()), materialize_grads=True)
    objective = pde.objective(of, DRAWN, micro_batch=micro_batch)
    assert_close(objective.loss(), expected.detach(), dimension=1000)
    for kinds in (frozenset[Labels](), frozenset({Labels.EXACT})):
        found, blocks = seen(of, micro_batch=micro_batch, kinds=kinds, every_block=False)
        packed = blocks.pack(dict(zip((n for n, _ in of.named_parameters()), grads, strict=True)))
        assert found.examples == sum(map(len, DRAWN))
        assert_close(found.loss, expected.detach(), dimension=1000)
        for block in blocks.layout.names:
            assert_close(found.gradient[block], packed[block], dimension=1000, scale=1.0, what=block)
    assert (of.reason is None) == (name not in NESTED)
    heard = {block.name for block in blocks.tapped} & set(found.layers[Labels.EXACT])
    assert (not heard) == (name in NESTED)


@every
def test_gradients_of_examples_add_up_to_the_gradient(name: str) -> None:
    """With the data's vectors ``Σ_t 1/n_t Σ_n Σ_s g aᵀ``, with exact ones weighted by the residuals."""
    found, blocks = seen(made(name))
    for kind in (Labels.DATA, Labels.EXACT):
        assert set(found.layers[kind]) == set(blocks.layout.names)
        for block, terms in found.layers[kind].items():
            total = torch.zeros(1, device="cpu")
            for term, r in zip(terms, found.residuals[kind], strict=True):
                assert term.grads is not None
                total = total + torch.einsum("vn,vnso,nsi->oi", r, term.grads, term.inputs) / len(r.mT)
            assert_close(
                total.view(found.gradient[block].shape),
                found.gradient[block],
                dimension=1000,
                scale=1.0,
                what=f"{block}, {kind}",
            )


@every
def test_exact_vectors_are_gradients_of_the_residuals(name: str) -> None:
    """``Σ_s g aᵀ`` of one residual at one point, times the root of the term's weight, in every block."""
    of = made(name)
    found, blocks = seen(of)
    for t, r in enumerate(residuals(of, DRAWN)):
        assert_close(found.residuals[Labels.EXACT][t], r.detach().mT, dimension=1000, scale=1.0)
        for n in range(0, len(r), 3):
            for q in range(r.shape[1]):
                own = torch.autograd.grad(
                    r[n, q], list(of.parameters()), retain_graph=True, materialize_grads=True
                )
                packed = blocks.pack(dict(zip((n for n, _ in of.named_parameters()), own, strict=True)))
                for block in blocks.layout.names:
                    term = found.layers[Labels.EXACT][block][t]
                    assert term.grads is not None
                    mine = (term.grads[q, n].mT @ term.inputs[n]).view(packed[block].shape)
                    assert_close(mine, packed[block], dimension=1000, scale=1.0, what=f"{block}, term {t}")


def test_terms_have_their_points_channels_and_residuals() -> None:
    found, _ = seen(model(), every_block=False)
    shapes = [(term.inputs.shape[:2], term.grads.shape[:3]) for term in found.layers[Labels.EXACT]["net.0"]]  # type: ignore[union-attr]
    # value, three first derivatives, Laplacian; value, ∂x, ∂y, ∂xy, ∂yy, ∂xyy; value
    assert shapes == [((7, 5), (1, 7, 5)), ((6, 6), (2, 6, 6)), ((4, 1), (1, 4, 1))]
    assert all(term.channels for terms in found.layers[Labels.EXACT].values() for term in terms)
    assert all(term.grads is None for terms in found.layers[Labels.NONE].values() for term in terms)
    ones = found.layers[Labels.NONE]["net.0"][1].inputs[..., -1]
    assert ones.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 6


def test_sampled_vectors_are_normal_numbers_times_the_exact_ones() -> None:
    """One number for each draw and residual, the same in all layers."""
    found, blocks = seen(model())
    for t in (0, 2):  # one residual a point
        ratios = []
        for block in blocks.layout.names:
            exact, sampled = (found.layers[kind][block][t].grads for kind in (Labels.EXACT, Labels.MODEL))
            assert exact is not None
            assert sampled is not None
            assert sampled.shape[0] == 3
            size = exact.square().sum((2, 3))
            ratio = torch.where(size > 0, (sampled * exact).sum((2, 3)) / size, float("nan"))
            ratios.append(ratio)
            assert_close(sampled, ratio.nan_to_num()[..., None, None] * exact, dimension=100, what=block)
        for other in ratios[1:]:
            assert_close(other[~other.isnan()], ratios[0].expand_as(other)[~other.isnan()], dimension=1000)
    rng = torch.Generator().manual_seed(0)
    many = (DRAWN[0].new_empty(4000, 3).uniform_(generator=rng), *(x[:0] for x in DRAWN[1:]))
    more, _ = seen(model(), many, kinds=frozenset({Labels.EXACT, Labels.MODEL}), every_block=False)
    exact, sampled = (more.layers[kind]["net.0"][0].grads for kind in (Labels.EXACT, Labels.MODEL))
    assert exact is not None
    assert sampled is not None
    drawn = (sampled * exact).sum((2, 3)) / exact.square().sum((2, 3)) * 3**0.5
    assert abs(float(drawn.mean())) < 0.04
    assert abs(float(drawn.var()) - 1) < 0.06


def test_sampled_vectors_mix_the_residuals_of_a_point() -> None:
    """``Σ_q ξ_q ∂r_q``: two residuals, solved for, are the same in every layer."""
    found, blocks = seen(model(), kinds=frozenset({Labels.EXACT, Labels.MODEL}), every_block=False)
    mixes = []
    for block in ("net.0", "net.2.0"):
        exact, sampled = (found.layers[kind][block][1].grads for kind in (Labels.EXACT, Labels.MODEL))
        assert exact is not None
        assert sampled is not None
        mixes.append(
            torch.stack(
                [torch.linalg.lstsq(exact[:, n].flatten(1).mT, sampled[:, n].flatten(1).mT).solution
                 for n in range(6)]
            )
        )  # fmt: skip
    assert_close(mixes[0], mixes[1], dimension=100, condition=1e3)


@every
def test_micro_batches_are_one_batch(name: str) -> None:
    """Of everything that is not drawn; a micro-batch cuts across terms."""
    kinds = ALL - {Labels.MODEL}
    whole, _ = seen(made(name), kinds=kinds)
    cut, _ = seen(made(name), micro_batch=5, kinds=kinds)
    assert_close(cut.gradient.flat, whole.gradient.flat, dimension=1000)
    for kind in kinds:
        assert set(cut.layers[kind]) == set(whole.layers[kind])
        for block, terms in whole.layers[kind].items():
            for mine, theirs in zip(cut.layers[kind][block], terms, strict=True):
                assert_close(mine.inputs, theirs.inputs, dimension=20)
                assert (mine.grads is None) == (theirs.grads is None)
                if theirs.grads is not None and mine.grads is not None:
                    assert_close(mine.grads, theirs.grads, dimension=1000, scale=1.0)


@pytest.mark.parametrize("kept", [(0,), (1,), (0, 2)])
def test_a_batch_may_lack_terms(kept: tuple[int, ...]) -> None:
    of, points = model(), parts(DRAWN, *kept)
    found, blocks = seen(of, points)
    expected = loss(of, points)
    assert_close(found.loss, expected.detach(), dimension=1000)
    grads = torch.autograd.grad(expected, list(of.parameters()), materialize_grads=True)
    packed = blocks.pack(dict(zip((n for n, _ in of.named_parameters()), grads, strict=True)))
    assert_close(found.gradient.flat, packed.flat, dimension=1000)
    for terms in found.layers[Labels.EXACT].values():
        assert [len(term.inputs) for term in terms] == [len(x) for x in points]


def test_a_layer_that_one_term_does_not_depend_on_has_rows_of_zeros_there() -> None:
    """Two functions, each of a network of its own."""

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = mlp(2), mlp(2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.first(x), self.second(x)], 1)

    made = pde.Problem(
        {"x": (0.0, 1.0), "y": (0.0, 1.0)},
        (
            pde.Term(lambda u, x: u[0].laplacian() - 1, pde.Inside(5)),
            pde.Term(lambda u, x: u[0]() * u[1]() - 1, pde.Inside(4)),
        ),
        outputs=2,
    )
    of = pde.Residuals(Apart(), made)
    found, blocks = seen(of, made.draw())
    for block in blocks.layout.names:
        terms = found.layers[Labels.EXACT][block]
        assert [len(term.inputs) for term in terms] == [5, 4]
        inside = terms[0].grads
        assert inside is not None
        assert bool(inside.any()) == ("first" in block)
        total = torch.zeros_like(found.gradient[block])
        for term, r in zip(terms, found.residuals[Labels.EXACT], strict=True):
            assert term.grads is not None
            total += torch.einsum("vn,vnso,nsi->oi", r, term.grads, term.inputs) / len(term.inputs)
        assert_close(total, found.gradient[block], dimension=100, scale=1.0)


def test_a_frozen_layer_changes_no_other() -> None:
    whole, free = model(), model()
    free.net[0].requires_grad_(False)  # type: ignore[index]
    found, _ = seen(free)
    reference, _ = seen(whole)
    assert "net.0" not in found.layers[Labels.EXACT]
    for block in found.layers[Labels.EXACT]:
        assert_close(found.gradient[block], reference.gradient[block], dimension=1000)


def test_a_layer_that_is_also_used_otherwise_is_refused() -> None:
    made = pde.Problem({"x": (0.0, 1.0)}, (pde.Term(lambda u, x: u(), pde.Inside(5)),))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x) * self.net[0].weight.sum()
            return out

    of = pde.Residuals(Twice(), made)
    with pytest.raises(ConfigError, match='"net.net.0.weight" is not explained by the calls of its layer'):
        seen(of, made.draw(), every_block=False)


def test_second_derivatives_along_a_direction() -> None:
    """``bend(v)`` is ``d²r/ds²`` at θ + s v; of nested networks, too."""
    for name in ("mlp", "norm"):
        of = made(name)
        blocks = partition(of, lambda layer: True)
        needs = Needs(layers=frozenset({Labels.EXACT}), bend=True)
        found = pde.objective(of, DRAWN, micro_batch=5).evaluate(needs, blocks, reference_context())
        assert found.bend is not None
        v = found.gradient.zeros_like()
        v.flat.normal_(generator=torch.Generator().manual_seed(0))
        bent = found.bend(v)
        along = blocks.assembled(v)
        values = []
        for s in (-1e-3, 0.0, 1e-3):
            moved = made(name)
            with torch.no_grad():
                for n, p in moved.named_parameters():
                    p.add_(along[n], alpha=s)
            values.append(residuals(moved, DRAWN))
        for mine, low, mid, high in zip(bent, *values, strict=True):
            expected = (low - 2 * mid + high).detach().mT / 1e-6
            assert float((mine - expected).norm() / expected.norm()) < 1e-3


def test_another_precision_keeps_its_statistics() -> None:
    of = model().float()
    wide = pde.objective(of, [x.float() for x in DRAWN]).cast(torch.float64)
    assert wide is not None
    blocks = partition(of.double(), lambda layer: True)
    found = wide.evaluate(Needs(layers=frozenset({Labels.EXACT})), blocks, reference_context())
    assert len(found.layers[Labels.EXACT]["net.0"]) == 3
    assert found.loss.dtype == torch.float64
    exact, _ = seen(of, tuple(x.float().double() for x in DRAWN))
    assert float((found.gradient.flat - exact.gradient.flat).norm() / exact.gradient.flat.norm()) < 1e-5
