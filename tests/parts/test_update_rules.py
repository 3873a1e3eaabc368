"""Rules for updates: each against the words of its definition, and the limits in which it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from curvlab.linalg.columns import Columns
from curvlab.linalg.matrices import matrices, parameters
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.parts.cautious import Cautious
from curvlab.parts.hyperball import Hyperball
from curvlab.parts.nesterov import Nesterov
from curvlab.parts.radial import RadialBrake
from curvlab.parts.row_floor import RowFloor
from curvlab.parts.schedules import Linear
from curvlab.parts.transforms import Ema
from curvlab.protocols.step import At, Transform
from tests.parts.vectors import DTYPE, at, vector

#: a layer of two weights and a bias in one block, and a norm's scale
JOINED = BlockLayout(
    {"layer": (3, 6), "scale": (4,)},
    columns={
        "layer": (Columns("a", 0, 2, True), Columns("b", 2, 5, True), Columns("bias", 5, 6, False)),
        "scale": (Columns("scale", 0, 1, False),),
    },
)


def drawn(seed: int) -> BlockVector:
    return vector(seed, JOINED)


def applied(part: Transform, v: BlockVector, place: At) -> BlockVector:
    return part(part.init(v), v.borrow(), place)


def norms(v: BlockVector) -> dict[str, torch.Tensor]:
    return {columns.parameter: torch.linalg.vector_norm(m) for _, columns, m in matrices(v)}


IDENTITIES: Mapping[str, Transform] = {
    "cautious": Cautious(),
    "radial brake of ones": RadialBrake(1.0, 1.0),
    "row floor of zero": RowFloor(0.0),
    "nesterov without memory": Nesterov(0.0),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_in_its_limit_a_rule_changes_nothing(name: str) -> None:
    v = drawn(1)
    found = applied(IDENTITIES[name], v, at(drawn(2), theta=drawn(3)))
    torch.testing.assert_close(found.flat, v.flat)


@pytest.mark.parametrize(
    "part",
    [RadialBrake(0.0, 0.0), RowFloor(2.0), Hyperball(), Cautious(mask=True)],
    ids=lambda p: type(p).__name__,
)
def test_what_is_no_matrix_keeps_its_update_and_matrices_do_not(part: Transform) -> None:
    v, place = drawn(1), at(drawn(2), theta=drawn(3))
    found = applied(part, v, place)
    for (_, columns, mine), (_, _, given) in zip(parameters(found), parameters(v), strict=True):
        is_matrix = columns.matrix or isinstance(part, Cautious)
        assert torch.equal(mine, given) != is_matrix, columns


# Nesterov's momentum


def test_nesterov_is_the_average_of_all_vectors_and_the_newest_again() -> None:
    part, average = Nesterov(0.8), Ema(0.8)
    state, seen = part.init(vector()), average.init(vector())
    for k in range(6):
        v = vector(k)
        found = part(state, v.borrow(), at(v))
        average(seen, v.borrow(), at(v))
        again = replace(seen, average=seen.average.clone())
        torch.testing.assert_close(found.flat, average(again, v.borrow(), at(v)).flat)


def test_nesterov_of_one_vector_again_and_again_is_that_vector() -> None:
    part, v = Nesterov(0.9), vector(1)
    state = part.init(v)
    for beta in (0.9, 0.9, 0.5):  # β may change while training
        found = Nesterov(beta)(state, v.borrow(), at(v))
        torch.testing.assert_close(found.flat, v.flat)


# cautious decay, and the cautious mask


def test_decay_acts_where_update_and_weight_agree_in_sign_and_on_a_zero_update() -> None:
    v, theta = drawn(1), drawn(2)
    v.flat[:3] = 0.0
    found = applied(Cautious(Linear(0.0, 0.6, 2)), v, at(drawn(3), step=1, theta=theta))
    expected = v.flat + 0.3 * (v.flat * theta.flat >= 0) * theta.flat
    torch.testing.assert_close(found.flat, expected)
    assert not torch.equal(expected, v.flat + 0.3 * theta.flat)


def test_signs_are_compared_where_the_product_underflows() -> None:
    v, theta = drawn(1), drawn(2)
    small = applied(Cautious(0.5), v * 1e-300, at(drawn(3), theta=theta * 1e-300))
    assert torch.equal(small.flat != v.flat * 1e-300, v.flat * theta.flat > 0)


def test_the_mask_keeps_entries_along_the_gradient_and_their_number_sets_the_scale() -> None:
    v, g = drawn(1), drawn(2)
    found = applied(Cautious(mask=True), v, at(g, theta=drawn(3)))
    for (_, _, mine), (_, _, u), (_, _, gradient) in zip(
        parameters(found), parameters(v), parameters(g), strict=True
    ):
        kept = (u * gradient > 0).to(DTYPE)
        torch.testing.assert_close(mine, u * kept * u.numel() / (kept.sum() + 1))


# along the weight


def test_a_full_brake_leaves_no_component_along_the_weight() -> None:
    theta = drawn(3)
    found = applied(RadialBrake(0.0, 0.0), drawn(1), at(drawn(2), theta=theta))
    for (_, _, u), (_, _, w) in zip(matrices(found), matrices(theta), strict=True):
        assert abs(float((u * w).sum())) < 1e-12


def test_the_brake_tells_steps_outward_from_steps_inward() -> None:
    """The step subtracts the update: one along −W makes W longer."""
    theta, part = drawn(3), RadialBrake(outward=0.25, inward=0.75)
    for sign, factor in ((-1.0, 0.25), (1.0, 0.75)):
        found = applied(part, theta * sign, at(drawn(2), theta=theta))
        for (_, _, u), (_, _, w) in zip(matrices(found), matrices(theta), strict=True):
            torch.testing.assert_close(u, sign * factor * w)


# rows


def test_no_row_is_shorter_than_its_share_and_longer_ones_stay() -> None:
    theta, v = drawn(3), drawn(1)
    v["layer"][0].mul_(1e-100)  # the factor that lifts it is 1e100
    v["layer"][1].zero_()
    found = applied(RowFloor(0.7), v, at(drawn(2), theta=theta))
    for (_, _, mine), (_, _, u), (_, _, w) in zip(matrices(found), matrices(v), matrices(theta), strict=True):
        least, before = 0.7 * w.norm(dim=1), u.norm(dim=1)
        expected = torch.where(before > 0, torch.maximum(before, least), before)
        torch.testing.assert_close(mine.norm(dim=1), expected)
        cosine = torch.nn.functional.cosine_similarity(mine[::2], u[::2] / before[::2, None], dim=1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))


# spheres


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("tangent", [True, False])
def test_every_step_ends_on_the_sphere_of_the_first_norm(relative: bool, tangent: bool) -> None:
    part, theta = Hyperball(relative, tangent), drawn(0)
    state, first = part.init(theta), norms(theta)
    for k in range(5):
        rates = {"b": 3.0}
        place = replace(at(drawn(2), lr=0.3, theta=theta), ratio=lambda name, r=rates: r.get(name, 1.0))
        update = part(state, drawn(k + 1), place)
        for _, columns, u in parameters(update):
            u.mul_(rates.get(columns.parameter, 1.0))
        theta = theta.plus(update, -0.3)
        torch.testing.assert_close(norms(theta), first, rtol=1e-14, atol=0)


def test_a_tangent_step_turns_each_matrix_by_the_angle_whose_tangent_is_the_rate() -> None:
    part, theta = Hyperball(tangent=True), drawn(0)
    ends = theta.plus(applied(part, drawn(1), at(drawn(2), lr=0.25, theta=theta)), -0.25)
    for (_, _, before), (_, _, after) in zip(matrices(theta), matrices(ends), strict=True):
        cosine = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
        torch.testing.assert_close(torch.acos(cosine), torch.atan(torch.tensor(0.25, dtype=DTYPE)))


def test_a_step_is_the_published_one_normalized_update_normalized_weight() -> None:
    theta, v, lr = drawn(0), drawn(1), 0.1
    ends = theta.plus(applied(Hyperball(), v, at(drawn(2), lr=lr, theta=theta)), -lr)
    for (_, _, w), (_, _, u), (_, _, found) in zip(matrices(theta), matrices(v), matrices(ends), strict=True):
        moved = w - lr * w.norm() * u / u.norm()
        torch.testing.assert_close(found, moved / moved.norm() * w.norm())


def test_for_small_rates_a_step_of_own_length_is_the_update_without_its_radial_part() -> None:
    theta, v = drawn(0), drawn(1)
    found = applied(Hyperball(relative=False), v, at(drawn(2), lr=1e-6, theta=theta))
    braked = applied(RadialBrake(0.0, 0.0), v, at(drawn(2), theta=theta))
    torch.testing.assert_close(found.flat, braked.flat, rtol=1e-4, atol=1e-4)


def test_a_matrix_of_zeros_and_a_step_of_rate_zero_have_no_sphere() -> None:
    v, part = drawn(1), Hyperball()
    state, zero = part.init(v), drawn(0)
    zero["layer"][:, :2].zero_()
    for lr in (0.1, 0.0):
        place = at(drawn(2), lr=lr, theta=zero)
        found = part(state, v.borrow(), place)
        assert torch.equal(found["layer"][:, :2], v["layer"][:, :2])
        assert torch.equal(found.flat, v.flat) == (lr == 0.0)
    later = zero.plus(v, -0.1)  # it is moved as it is, later too
    again = part(state, v.borrow(), at(drawn(2), lr=0.1, theta=later))
    assert torch.equal(again["layer"][:, :2], v["layer"][:, :2])
