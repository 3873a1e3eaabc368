"""Every check of the suites of backends, tasks, methods and reporters finds a part that breaks its law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from curvlab.engine.method import Method
from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.damping import Constant
from curvlab.parts.identity import Identity
from curvlab.parts.steps import Rate
from curvlab.parts.transforms import Clip
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Solve
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Workload
from curvlab.reporting.quiet import Quiet
from curvlab.tasks.quadratic import Quadratic
from curvlab.tasks.teacher_student import TeacherStudent
from tests.testing.caught import Broken, broken, frame


def seeded() -> float:
    """A factor next to 1 that depends on torch's global seed, and draws nothing."""
    return 1 + 1e-6 * (torch.initial_seed() % 2)


UNEQUAL = {"__eq__": lambda self, other: self is other, "__hash__": object.__hash__}

# backends


def precision(
    check: str, dtype: str = "float64", also: tuple[str, ...] = (), why: str = "", **methods: Any
) -> Broken:
    return Broken(check, broken(Full, **methods)(dtype), also, why)


class Somewhere(str):
    """What torch takes for a device, and is none."""

    type = "cpu"


def cholesky_then(then: Callable[[Tensor], Tensor]) -> Any:
    return lambda self, A: then(Full.cholesky(self, A))


def draw(L: Tensor) -> Tensor:
    torch.rand(())
    return L


def switch(L: Tensor) -> Tensor:
    torch.use_deterministic_algorithms(True)
    return L


def upper_in_stacks(L: Tensor) -> Tensor:
    return L.mT.contiguous() if L.dim() > 2 else L


def blind_to_tensors(self: Any, A: Tensor, shift: Any = 0.0) -> Tensor:
    return Full.inverse(self, A, shift if isinstance(shift, float) else 0.0)


def tried_once(self: Any, A: Tensor) -> Tensor:
    L, info = torch.linalg.cholesky_ex(A.to(torch.promote_types(A.dtype, torch.float32)))
    if bool(info.any()):
        raise NotPositiveDefinite("the first try failed")
    return L.to(A.dtype).contiguous()


def descending(self: Any, A: Tensor) -> Any:
    values, vectors = Full.eigh(self, A)
    return values.flip(-1), vectors.flip(-1)


def forgetful_gram(self: Any, M: Tensor, keep: float, X: Tensor, weight: float) -> Tensor:
    return Full.gram_(self, M, 1.0, X, weight)


def eigenvectors_of_nothing(self: Any, A: Tensor) -> Any:
    return Full.eigh(self, A.nan_to_num(0.0))


def overwriting(self: Any, A: Tensor) -> Any:
    found = Full.eigh(self, A)
    A.mul_(1.0 + 2.3e-16)
    return found


def column_major(self: Any, A: Tensor) -> Any:
    values, vectors = Full.eigh(self, A)
    return values, vectors.mT.contiguous().mT


BACKENDS = [
    precision("settings", **UNEQUAL),
    precision("random_state", cholesky=cholesky_then(draw)),
    precision("determinism", cholesky=cholesky_then(lambda L: L * (1 + 2e-16 * (torch.initial_seed() % 2)))),
    precision("autograd", cholesky=cholesky_then(switch)),
    precision("obligations", torch_device=property(lambda self: Somewhere("cpu"))),
    precision("gram", gram_=forgetful_gram),
    precision("cholesky", cholesky=cholesky_then(upper_in_stacks)),
    precision("inverse", inverse=blind_to_tensors),
    precision("eigh", eigh=descending),
    precision("lifts", "float32", cholesky=tried_once),
    precision("not_positive_definite", eigh=eigenvectors_of_nothing),
    precision("arguments", eigh=overwriting),
    precision("row_major", eigh=column_major),
]

# tasks

SMALL = {"inputs": 3, "hidden": (4,), "outputs": 2, "size": 40, "validation_size": 16, "batch_size": 8}


@dataclass
class Altered(Workload):
    """Another workload, some of its answers changed."""

    base: Any
    objectives: Callable[[Any, Draw], Any] = lambda base, draw: base.objective(draw)
    measured: Callable[[Any], Mapping[str, float]] = lambda base: base.metrics()

    @property
    def model(self) -> Any:  # type: ignore[override]
        return self.base.model

    @property
    def size(self) -> int:
        return int(self.base.size)

    def objective(self, draw: Draw) -> Objective:
        return self.objectives(self.base, draw)

    def metrics(self) -> Mapping[str, float]:
        return self.measured(self.base)


def task(check: str, **methods: Any) -> Broken:
    return Broken(check, broken(TeacherStudent, **methods)(**SMALL))


def altered(**answers: Any) -> Any:
    def workload(self: Any, model: Any, *, dtype: Any, device: Any) -> Workload:
        return Altered(TeacherStudent.workload(self, model, dtype=dtype, device=device), **answers)

    return workload


def always_the_same(self: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TeacherStudent.model(self)


def drawing(self: Any, model: Any, *, dtype: Any, device: Any) -> Workload:
    torch.rand(())
    return TeacherStudent.workload(self, model, dtype=dtype, device=device)


def always_double(self: Any, model: Any, *, dtype: Any, device: Any) -> Workload:
    return TeacherStudent.workload(self, model, dtype=torch.float64, device=device)


class Doubling:
    """An objective whose gradient is twice that of its loss."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __call__(self) -> Any:
        return self.base()

    def loss(self, at: Any = None) -> Any:
        return self.base.loss(at)

    def evaluate(self, *arguments: Any) -> Any:
        seen = self.base.evaluate(*arguments)
        return replace(seen, gradient=seen.gradient * 2.0)


@torch.no_grad()
def moving(base: Any) -> Mapping[str, float]:
    found = base.metrics()
    next(base.model.parameters()).add_(1e-4)
    return found


TASKS = [
    Broken("settings", broken(TeacherStudent, **UNEQUAL)(**SMALL)),
    task("obligations", judged_by=("val_accuracy", True)),
    task("model", model=always_the_same),
    task("random_state", workload=drawing),
    task("dtypes", workload=always_double),
    task("gradient", workload=altered(objectives=lambda base, draw: Doubling(base.objective(draw)))),
    task("pure", workload=altered(measured=moving)),
    task("metrics", workload=altered(measured=lambda base: {**base.metrics(), "examples": 16})),
    task(
        "draws",
        workload=altered(objectives=lambda base, d: base.objective(replace(d, acceptance=d.gradient))),
    ),
]

# methods


@dataclass
class Count:
    """Steps seen."""

    steps: int = 0


@dataclass
class UnsavedCount(Count):
    steps: int = field(default=0, metadata={"transient": True})


@dataclass(frozen=True)
class Slowing(Preconditioner[Count]):
    """The gradient, less of it with every step."""

    kind: type[Count] = Count

    def init(self, like: BlockVector, ctx: Context) -> Count:
        return self.kind()

    def observe(self, state: Count, seen: Any, ctx: Context) -> None:
        state.steps += 1

    def apply(self, state: Count, v: BlockVector, ctx: Context) -> Solve:
        return Solve(v * (1 / (1 + 0.1 * state.steps)))


def method(check: str, preconditioner: Any, also: tuple[str, ...] = (), why: str = "", **more: Any) -> Broken:
    return Broken(check, Method(preconditioner, Constant(0.0), Rate(0.1), **more), also, why)


def applying(then: Any) -> Any:
    return broken(Slowing, apply=lambda self, state, v, ctx: then(Slowing.apply(self, state, v, ctx)))()


def drawn(solve: Solve) -> Solve:
    torch.rand(())
    return solve


def switched(solve: Solve) -> Solve:
    torch.use_deterministic_algorithms(True)
    return solve


def divided(self: Any, state: Any, v: BlockVector, at: Any) -> BlockVector:
    """By zero, in Python's arithmetic, where the units of the first layer are saturated."""
    norm = float(at.gradient["0.weight"].norm())
    return v * (norm / norm)


def talkative(self: Any, state: Any, what: Any, ctx: Context) -> Any:
    return (Event("Learned Something", ctx.step, {"norm": what.solve.x.norm()}),)


@dataclass
class Products:
    """This step's Gauss-Newton matrix."""

    ggn: Any = field(default=None, metadata={"transient": True})


@dataclass(frozen=True)
class Spendthrift(Preconditioner[Products]):
    """Makes a product that it did not announce."""

    def needs(self, step: int) -> Needs:
        return Needs(implicit=True)

    def init(self, like: BlockVector, ctx: Context) -> Products:
        return Products()

    def observe(self, state: Products, seen: Any, ctx: Context) -> None:
        state.ggn = seen.ggn

    def apply(self, state: Products, v: BlockVector, ctx: Context) -> Solve:
        return Solve(v.plus(state.ggn @ v, -0.01))


METHODS = [
    Broken("settings", broken(Method, **UNEQUAL)(Identity(), Constant(0.0), Rate(0.1))),
    method("random_state", applying(drawn)),
    method("determinism", applying(lambda solve: Solve(solve.x * seeded()))),
    method("autograd", applying(switched)),
    method(
        "coverage",
        broken(Slowing, refuses=lambda self, block: "too small" if block.name.endswith("bias") else None)(),
        ("random_state", "determinism", "autograd", "trains", "resume", "failure", "events", "needs"),
        "a method that does not treat every parameter does not begin",
    ),
    method("trains", applying(lambda solve: Solve(solve.x * -1.0))),
    method("resume", Slowing(UnsavedCount)),
    method("failure", Slowing(), on_update=(broken(Clip, __call__=divided)(1.0),)),
    method("events", broken(Slowing, learn=talkative)()),
    method("needs", Spendthrift()),
]

# reporters

FINISHED, STEPPED = [0], [0]


def reporter(check: str, **methods: Any) -> Broken:
    return Broken(check, broken(Quiet, **methods)())


def but_once(self: Any, summary: Any) -> None:
    FINISHED[0] += 1
    if FINISHED[0] == 2:
        raise RuntimeError("finished already")


def after_a_step(self: Any, record: Any) -> None:
    STEPPED[0] = 1


def at_a_step(self: Any, summary: Any) -> None:
    if not STEPPED[0]:
        raise ZeroDivisionError("seconds per step")
    STEPPED[0] = 0


def whole_loss(self: Any, record: Any) -> None:
    round(record.loss)


def seconds_left(self: Any, manifest: Any) -> None:
    budget = manifest["budget"]
    if budget["steps"] is None:
        budget["steps"] + 0


def printing(self: Any, record: Any) -> None:
    print(record.step)


def drawing_record(self: Any, record: Any) -> None:
    torch.rand(())


REPORTERS = [
    reporter("settings", **UNEQUAL),
    reporter("run", finished=but_once),
    reporter("odd_values", stepped=whole_loss),
    reporter("budgets", started=seconds_left),
    reporter("early_end", stepped=after_a_step, finished=at_a_step),
    reporter("standard_output", stepped=printing),
    reporter("random_state", stepped=drawing_record),
]

EVERY = {"precision": BACKENDS, "task": TASKS, "method": METHODS, "reporter": REPORTERS}

SOUND = [
    ("precision", Full("float64")),
    ("precision", Full()),
    ("task", TeacherStudent(**SMALL)),
    ("task", Quadratic(dimension=7, size=40)),
    ("method", Method(Slowing(), Constant(0.0), Rate(0.1))),
    ("reporter", Quiet()),
]

caught, shown, passes = frame(EVERY, SOUND, nor=("fail", "skip"))
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes
