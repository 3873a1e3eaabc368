"""Problems say in one clear message what is wrong with them; residual functions see the solution."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab import pde
from curvlab.errors import ConfigError
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from tests.pde.networks import derivative
from tests.pde.problems import mlp, problem

BOX = {"x": (0.0, 1.0), "t": (0.0, 2.0)}
Residual = Callable[[pde.Field, Tensor], Any]


def solved(residual: Residual, net: nn.Module | None = None, **settings: Any) -> Tensor:
    """The loss of a problem of one term over two coordinates at seven points."""
    points = settings.pop("points", pde.Inside(7))
    made = pde.Problem(BOX, (pde.Term(residual, points, name="mine"),), **settings)
    model = pde.Residuals(mlp(2, made.outputs) if net is None else net, made)
    return pde.objective(model).loss()


def test_a_field_has_values_derivatives_data_and_coefficients() -> None:
    net, x, given = mlp(2, 2), normal(7, 2, seed=1), normal(7, 3, seed=2)
    saw: dict[str, Tensor] = {}

    def residual(u: pde.Field, x: Tensor) -> Tensor:
        saw.update(
            value=u(), one=u[1](), mixed=u.d("t", "x"), numbered=u.d(0, 1), single=u[0].d("x"),
            gradient=u.gradient(), part=u.gradient("t"), laplacian=u.laplacian(), along=u[1].laplacian("t"),
            data=u.data(), nu=u.coefficient("nu"), x=x,
        )  # fmt: skip
        return u()

    loss = solved(residual, net, outputs=2, unknowns={"nu": 0.5}, points=pde.Fixed(x, given))
    values = {each: derivative(net, x, each) for each in ((), (0,), (1,), (0, 1), (0, 0), (1, 1))}
    first = torch.stack([values[(0,)], values[(1,)]], -1)
    expected = {
        "value": values[()],
        "one": values[()][:, 1],
        "mixed": values[(0, 1)],
        "numbered": values[(0, 1)],
        "single": values[(0,)][:, 0],
        "gradient": first,
        "part": first[..., 1:],
        "laplacian": values[(0, 0)] + values[(1, 1)],
        "along": values[(1, 1)][:, 1],
        "data": given,
        "nu": torch.tensor(0.5).double(),
        "x": x,
    }
    assert set(saw) == set(expected)
    for name, theirs in expected.items():
        assert_close(saw[name], theirs, dimension=100, what=name)
    assert_close(loss, 0.5 * values[()].square().sum(1).mean(), dimension=100)


def test_a_residual_may_ask_for_other_derivatives_later() -> None:
    """Those that it asks for where the solution has some value."""
    net, x = mlp(2), normal(7, 2, seed=1)
    made = pde.Problem(BOX, (pde.Term(late, pde.Fixed(x)),))
    model = pde.Residuals(net, made)
    expected = 0.5 * derivative(net, x, (0, 0, 1)).square().mean()
    objective = pde.objective(model)
    assert_close(objective.loss(), expected, dimension=100)
    curvlab.optimizer("kfac", model, lr=0.0).step(pde.objective(model))


def late(u: pde.Field, x: Tensor) -> Tensor:
    return u.d("x") if float(u().detach().mean()) > 1 else u.d("x", "t", "x")


@pytest.mark.parametrize(
    ("residual", "message", "hint"),
    [
        (lambda u, x: u() - x[:, :1], r'"mine" returns a tensor of shape \[2, 2\] at n = 2', r"x\[:, 0\]"),
        (lambda u, x: torch.outer(u(), u()).expand(2, len(x), len(x)), r"shape \[2, 3, 3\]", "for each"),
        (lambda u, x: u().square().mean(), r"shape \[\] at n = 3 points; expected \[n\] or", "for each"),
        (lambda u, x: u()[1:], r"returns a tensor of shape \[2\]", "for each point"),
        (lambda u, x: u() > 0, r"returns a tensor of shape \[3\] and dtype bool", "for each point"),
        (lambda u, x: None, "returns NoneType", "for each point"),
        (lambda u, x: x[:, 0] - 1, "does not use u: it does not depend on the network", "laplacian"),
        (lambda u, x: u.d("y"), "'y' is not a coordinate of the problem, which has x, t", ""),
        (lambda u, x: u.d("tt"), "'tt' is not a coordinate", '"t"'),
        (lambda u, x: u.d(2), "2 is not a coordinate", ""),
        (lambda u, x: u.d("x", "x", "x", "x", "x"), "called with 5 coordinates; expected 1 to 4", "order 4"),
        (lambda u, x: u.d(), "called with 0 coordinates", "u\\(\\) is the value"),
        (lambda u, x: u.laplacian("x", "x"), "expected each at most once", ""),
        (lambda u, x: u.coefficient("nu") * u(), 'coefficient "nu", which the problem does', "unknowns = "),
        (lambda u, x: u[1](), "reads output 1 of the network, which has 1", "set outputs"),
        (lambda u, x: u[-1](), "reads output -1", "set outputs"),
        (lambda u, x: u() - u.data(), "reads data, and the points of its term have none", "Fixed"),
    ],
)  # fmt: skip
def test_a_wrong_residual_is_named_before_training(residual: Residual, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as failed:
        pde.Residuals(mlp(2), pde.Problem(BOX, (pde.Term(residual, pde.Inside(7), name="mine"),)))
    if hint:
        assert re.search(hint, str(failed.value.faults[0].hint))


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (lambda: mlp(2, 3), {}, "the network has 3 outputs, and the problem seeks 1 functions"),
        (lambda: mlp(2, 1), {"outputs": 2}, "the network has 1 outputs, and the problem seeks 2 functions"),
        (lambda: mlp(3), {}, r"the network fails at points of shape \[7, 2\]: .*shapes cannot be multiplied"),
        (lambda: nn.Sequential(mlp(2), nn.Flatten(0)), {}, None),
        (lambda: nn.Sequential(mlp(2), nn.Unflatten(1, (1, 1))), {}, r"a tensor of shape \[7, 1, 1\] for 7"),
        (lambda: nn.GRU(2, 1, batch_first=True).double(), {}, "the network returns a tuple for 7 points"),
        (lambda: nn.Tanh(), {}, "the network has no parameters"),
        (lambda: mlp(2), {"transform": lambda x, N: N * x[:, 0]}, "has 7 outputs"),
        (lambda: mlp(2), {"transform": lambda x, N: (x, N)}, "the network returns a tuple for 7 points"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.GLU()).double(), {}, "cannot be differentiated 2 times"),
    ],
)
def test_a_network_that_does_not_fit_is_named(
    net: Callable[[], nn.Module], settings: dict[str, Any], message: str | None
) -> None:
    if message is None:  # [n] is one output
        assert solved(lambda u, x: u.d("x", "x"), net(), **settings).isfinite()
        return
    with pytest.raises(ConfigError, match=message):
        solved(lambda u, x: u.d("x", "x"), net(), **settings)


def term(residual: Any = lambda u, x: u(), points: pde.Points | None = None) -> pde.Term:
    return pde.Term(residual, points or pde.Inside(7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pde.Problem(BOX, ()), "the problem has no terms"),
        (lambda: pde.Problem({}, (term(),)), "the problem has no coordinates"),
        (lambda: pde.Problem({"x": (1.0, 1.0)}, (term(),)), "x ranges from 1.0 to 1.0; expected two finite"),
        (lambda: pde.Problem({"x": (0.0, float("inf"))}, (term(),)), "expected two finite numbers"),
        (lambda: pde.Problem(BOX, (term(),), outputs=0), "outputs = 0 must be at least 1"),
        (lambda: pde.Problem(BOX, (term(),), unknowns={"a b": 1.0}), 'unknown "a b" is not a name'),
        (lambda: term("u"), "is not a function"),
        (lambda: pde.Term(late, pde.Inside(7), weight=0.0), "weight"),
        (lambda: pde.Inside(0), "count"),
        (lambda: pde.Fixed(torch.zeros(3)), r"points have the shape \[3\]"),
        (lambda: pde.Fixed(torch.zeros(0, 2)), "there are no points"),
        (lambda: pde.Fixed(torch.zeros(3, 2), torch.zeros(2)), r"values have the shape \[2\] for 3 points"),
        (lambda: pde.Fixed(torch.zeros(3, 2), torch.tensor(0.0)), r"values have the shape \[\]"),
        (lambda: pde.Problem(BOX, (term(points=pde.Face("y", 0.0, 5)),)).draw(), '"y" is not a coordinate'),
        (lambda: pde.Problem(BOX, (term(points=pde.Faces(5, ("y",))),)).draw(), '"y" is not a coordinate'),
        (
            lambda: pde.Problem(BOX, (term(points=pde.Fixed(torch.zeros(3, 1))),)).draw(),
            "points have 1 coordinates; the problem has 2: x, t",
        ),
    ],
)
def test_a_wrong_problem_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def points(n: int, d: int) -> Tensor:
    return normal(n, d, seed=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([points(7, 2), points(6, 3), points(4, 3)], r'"equation" have the shape \[7, 2\]; expected'),
        ([points(7, 3), points(6, 3)], "2 sets of points for 3 terms"),
        ([points(7, 3), points(6, 3), points(5, 3)], '5 points for term "measured", whose data'),
        ([points(0, 3)] * 3, "empty"),
    ],
)  # fmt: skip
def test_points_that_do_not_fit_are_named(given: list[Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pde.objective(pde.Residuals(mlp(), problem()), given).loss()


def test_a_residual_without_the_parameters_is_named() -> None:
    made = pde.Problem(BOX, (pde.Term(lambda u, x: u().detach(), pde.Inside(7), name="mine"),))
    model = pde.Residuals(mlp(2), made)
    with pytest.raises(ConfigError, match='residual of term "mine" does not depend on the parameters'):
        curvlab.optimizer("kfac", model).step(pde.objective(model))


def test_three_residuals_at_a_point_are_no_mistake() -> None:
    """The number of points at which a function is tried."""
    loss = solved(lambda u, x: torch.stack([u(), u.d("x"), u.d("t")], 1))
    assert_close(loss, solved(lambda u, x: (u(), u.d("x"), u.d("t"))))
    with pytest.raises(ConfigError, match=r"returns a tensor of shape \[7, 2\]"):
        solved(lambda u, x: torch.stack([u()] * (1 if len(x) == 3 else 2), 1))
