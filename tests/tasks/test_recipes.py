"""What every task owes: settings that are checked, models anywhere, workloads that repeat."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curvlab.errors import ConfigError
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Task, Workload
from curvlab.tasks.character_gpt import FILE, CharacterGpt
from curvlab.tasks.curves import Curves
from curvlab.tasks.digits import Digits
from curvlab.tasks.fashion_autoencoder import FashionAutoencoder
from curvlab.tasks.fashion_convnet import FashionConvnet
from curvlab.tasks.fashion_mnist import FashionMnist
from curvlab.tasks.fashion_vit import FashionVit
from curvlab.tasks.quadratic import Quadratic
from curvlab.tasks.teacher_student import TeacherStudent

RECIPES: dict[str, Any] = {
    "quadratic": lambda root: Quadratic(dimension=20, condition=10.0, noise=0.1),
    "teacher-student": lambda root: TeacherStudent(size=256, validation_size=64),
    "curves": lambda root: Curves(hidden=(32,), size=128, validation_size=32, batch_size=32),
    "digits": lambda root: Digits(),
    "fashion-mnist": lambda root: FashionMnist(hidden=(16,), root=root),
    "fashion-autoencoder": lambda root: FashionAutoencoder(hidden=(32,), code=4, root=root, batch_size=32),
    "fashion-convnet": lambda root: FashionConvnet(channels=(4, 4, 8), hidden=16, root=root),
    "fashion-vit": lambda root: FashionVit(patch=7, dim=16, depth=2, heads=2, root=root),
    "character-gpt": lambda root: CharacterGpt(context=8, dim=16, depth=1, heads=2, text=f"{root}/{FILE}"),
}

#: a rate at which plain SGD makes progress in twenty steps
RATES = {
    "quadratic": 0.5,
    "teacher-student": 0.1,
    "curves": 1e-3,
    "digits": 0.5,
    "fashion-mnist": 0.1,
    "fashion-autoencoder": 1e-3,
    "fashion-convnet": 0.1,
    "fashion-vit": 0.05,
    "character-gpt": 0.1,
}


def everything(workload: Workload) -> Draw:
    n = torch.arange(workload.size)
    return Draw(n, n, n)


def made(task: Task, seed: int = 0, dtype: torch.dtype = torch.float64) -> Workload:
    torch.manual_seed(seed)
    return task.workload(task.model(), dtype=dtype, device=torch.device("cpu"))


def flat(workload: Workload) -> Tensor:
    return torch.cat([p.detach().flatten() for p in workload.model.parameters()])


@pytest.mark.parametrize("name", RECIPES)
def test_twenty_steps_of_torch_sgd_decrease_the_loss(name: str, fashion: str) -> None:
    """An objective is a closure, so torch's own optimizers run on every task."""
    workload = made(RECIPES[name](fashion))
    objective = workload.objective(everything(workload))
    optimizer = torch.optim.SGD(workload.model.parameters(), lr=RATES[name])
    before, start = dict(workload.metrics()), float(objective.loss())
    for _ in range(20):
        optimizer.step(objective)
    after = dict(workload.metrics())
    assert float(objective.loss()) < start
    assert after["val_loss"] < before["val_loss"]
    assert all(np.isfinite(v) for v in after.values())


@pytest.mark.parametrize("name", RECIPES)
def test_the_gradient_is_that_of_the_mean_loss(name: str, fashion: str) -> None:
    """Central differences along a random direction, in float64; short enough to cross no kink of a ReLU."""
    workload = made(RECIPES[name](fashion))
    batch = torch.arange(7)
    objective = workload.objective(Draw(batch, batch, batch))
    value = objective()
    torch.testing.assert_close(objective.loss(), value.detach())
    torch.manual_seed(1)
    named = dict(workload.model.named_parameters())
    direction = {n: torch.randn_like(p) for n, p in named.items()}
    slope = sum(float((p.grad * direction[n]).sum()) for n, p in named.items())
    h = 1e-8
    with torch.no_grad():
        up, down = (
            float(objective.loss({n: p + sign * h * direction[n] for n, p in named.items()}))
            for sign in (1, -1)
        )
    assert (up - down) / (2 * h) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_a_seed_gives_one_problem_and_one_start(name: str, fashion: str) -> None:
    recipe = RECIPES[name]
    first, again, other = made(recipe(fashion)), made(recipe(fashion)), made(recipe(fashion), seed=1)
    assert torch.equal(flat(first), flat(again))
    assert not torch.equal(flat(first), flat(other))
    assert dict(first.metrics()) == dict(again.metrics())
    draw = Draw(*(torch.tensor([3, 1, 2]) for _ in range(3)))
    assert torch.equal(first.objective(draw).loss(), again.objective(draw).loss())


@pytest.mark.parametrize("name", RECIPES)
def test_loading_data_leaves_the_global_generator_alone(name: str, fashion: str) -> None:
    task = RECIPES[name](fashion)
    model = task.model()
    before = torch.get_rng_state()
    task.workload(model, dtype=torch.float32, device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_can_be_made_without_memory(name: str, fashion: str) -> None:
    task = RECIPES[name](fashion)
    with torch.device("meta"):
        model = task.model()
    real = task.model()
    assert all(p.is_meta for p in model.parameters())
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }


@pytest.mark.parametrize("name", RECIPES)
def test_precisions_see_the_same_problem(name: str, fashion: str) -> None:
    task = RECIPES[name](fashion)
    narrow, wide = made(task, dtype=torch.float32), made(task, dtype=torch.float64)
    assert next(narrow.model.parameters()).dtype == torch.float32
    for metric, value in wide.metrics().items():
        assert narrow.metrics()[metric] == pytest.approx(value, rel=1e-4), metric


@pytest.mark.parametrize("name", RECIPES)
def test_the_metric_that_judges_is_measured(name: str, fashion: str) -> None:
    task = RECIPES[name](fashion)
    assert task.judged_by[0] in made(task).metrics()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_values(name: str, fashion: str) -> None:
    task = RECIPES[name](fashion)
    assert pickle.loads(pickle.dumps(task)) == task
    with pytest.raises(AttributeError):
        task.batch_size = 3


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (Quadratic, {"dimension": 0}, "dimension = 0 must be at least 1"),
    (Quadratic, {"condition": 0.5}, "condition = 0.5 must be at least 1"),
    (Quadratic, {"noise": -1.0}, "noise = -1.0 must not be negative"),
    (Quadratic, {"noise": float("nan")}, "noise = nan must not be negative"),
    (Quadratic, {"condition": float("inf")}, "condition = inf must be at least 1"),
    (Quadratic, {"size": 0}, "size = 0 must be at least 1"),
    (TeacherStudent, {"batch_size": 0}, "batch_size = 0 must be at least 1"),
    (TeacherStudent, {"hidden": (8, 0)}, "hidden.1 = 0 must be at least 1"),
    (TeacherStudent, {"teacher_hidden": (0,)}, "teacher_hidden.0 = 0 must be at least 1"),
    (Curves, {"size": 0}, "size = 0 must be at least 1"),
    (Curves, {"code": 0}, "code = 0 must be at least 1"),
    (Curves, {"hidden": (0,)}, "hidden.0 = 0 must be at least 1"),
    (Curves, {"data_seed": -1}, "data_seed = -1 must not be negative"),
    (Digits, {"batch_size": -1}, "batch_size = -1 must be at least 1"),
    (Digits, {"data_seed": -1}, "data_seed = -1 must not be negative"),
    (FashionMnist, {"hidden": (-4,)}, "hidden.0 = -4 must be at least 1"),
    (FashionAutoencoder, {"code": 0}, "code = 0 must be at least 1"),
    (FashionAutoencoder, {"connections": -1}, "connections = -1 must not be negative"),
    (FashionConvnet, {"channels": (8, 8)}, "channels = [8, 8] must hold 3 widths of at least 1"),
    (FashionConvnet, {"channels": (8, 0, 8)}, "channels.1 = 0 must be at least 1"),
    (FashionConvnet, {"hidden": 0}, "hidden = 0 must be at least 1"),
    (FashionConvnet, {"batch_size": 0}, "batch_size = 0 must be at least 1"),
    (FashionVit, {"patch": 5}, "patch = 5 must be a divisor of the images' side, 28"),
    (FashionVit, {"patch": 0}, "patch = 0 must be at least 1"),
    (FashionVit, {"dim": 0}, "dim = 0 must be at least 1"),
    (FashionVit, {"depth": 0}, "depth = 0 must be at least 1"),
    (FashionVit, {"heads": 3}, "heads = 3 must be a divisor of dim, 128"),
    (FashionVit, {"heads": -4}, "heads = -4 must be at least 1"),
    (FashionVit, {"mlp_ratio": 0}, "mlp_ratio = 0 must be at least 1"),
    (FashionVit, {"batch_size": 0}, "batch_size = 0 must be at least 1"),
    (CharacterGpt, {"context": 0}, "context = 0 must be at least 1"),
    (CharacterGpt, {"heads": 3}, "heads = 3 must be a divisor of dim, 128"),
]


@pytest.mark.parametrize(("task", "setting", "says"), BAD)
def test_bad_settings_are_refused_by_name_value_and_range(
    task: Any, setting: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        task(**setting)
    assert says in str(caught.value)
    assert caught.value.faults[0].path.split(".")[0] == next(iter(setting))


def test_every_bad_setting_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TeacherStudent(inputs=0, batch_size=0, noise=-1.0, hidden=(0,))
    assert {fault.path for fault in caught.value.faults} == {"inputs", "batch_size", "noise", "hidden.0"}
