"""Building: what a configuration becomes, and that its resolved form becomes the same."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from curvlab.config import build, load, resolve
from curvlab.config.plan import build_part
from curvlab.engine.plan import Plan
from curvlab.errors import ConfigError, PluginError
from curvlab.parts.samplers import FullBatch, SubsampledCurvature, Uniform
from curvlab.parts.steps import Rate
from curvlab.precision.full import Full
from curvlab.protocols.backend import Backend
from curvlab.registry import Registry, discover
from curvlab.registry.loader import Candidate
from curvlab.reporting.console import Console
from curvlab.reporting.quiet import Quiet
from curvlab.tasks.quadratic import Quadratic

SMALL = {"run": {"steps": 3}, "task": "quadratic", "method": "plain"}

#: one of every shape that a setting can have
EVERYTHING: dict[str, Any] = {
    "run": {"seconds": 1.5, "name": "all.of-it", "seed": 7, "eval_every": 5, "threads": 1},
    "task": {"use": "curvlab.tasks.quadratic:Quadratic", "dimension": 5, "noise": 0.5},
    "method": {
        "use": "fake",
        "lr": {"use": "cosine", "peak": 1, "steps": 9},
        "structure_in": "diagonal",
        "damping": "levenberg-marquardt",
        "on_gradient": ["clip-me-not", {"use": "clip", "norm": float("inf")}][1:],
        "fallback": {
            "preconditioner": {
                "use": "routed",
                "routes": {"*.weight": "identity", "b.c": {"use": "identity"}},
            },
            "damping": 0.5,
            "step": {
                "use": "gentle",
                "count": 3,
                "lr": {"use": "linear", "start": 1.0, "end": 0.0, "steps": 4},
                "widths": [],
                "pair": [2, "é\n"],
                "rates": {"a b": 0.25},
                "flag": True,
                "note": 'say "hi"',
                "grid": {"points": 2},
                "then": {"use": "rate", "lr": 0.1},
                "others": [{"use": "picky", "count": 0}, {"use": "rate", "lr": 1}],
                "routes": {"x.y": {"use": "armijo"}},
            },
        },
    },
    "precision": {"use": "float64"},
    "report": "quiet",
}
EVERYTHING["method"]["fallback"]["damping"] = {"use": "constant", "value": 0.5}


def again(plan: Plan, registry: Registry) -> Plan:
    """The plan of the resolved configuration, through its text."""
    return build(load(data=tomli.loads(tomli_w.dumps(dict(plan.resolved)))), registry)


def same(one: Plan, two: Plan) -> bool:
    parts = ("run", "task", "method", "method_name", "sampler", "backend", "resolved", "provenance")
    return all(getattr(one, part) == getattr(two, part) for part in parts)


def test_a_small_configuration_gets_its_defaults(registry: Registry) -> None:
    plan = build(load(data=SMALL), registry)
    assert plan.task == Quadratic()
    assert plan.sampler == Uniform()
    assert plan.backend == Full("float32")
    assert [type(r) for r in plan.reporters] == [Console]
    assert plan.method_name == "plain"
    assert plan.method.step == Rate(0.1)


@pytest.mark.parametrize("data", [SMALL, EVERYTHING], ids=["small", "everything"])
def test_the_resolved_configuration_builds_the_same_plan(data: dict[str, Any], registry: Registry) -> None:
    plan = build(load(data=data), registry)
    assert same(again(plan, registry), plan)


@settings(max_examples=25, deadline=None)
@given(
    st.fixed_dictionaries(
        {"use": st.just("fake")},
        optional={
            "lr": st.floats(1e-3, 10),
            "momentum": st.floats(0, 0.99),
            "decay": st.floats(0, 0.99),
            "structure": st.sampled_from(["dense", "diagonal", {"use": "diagonal"}]),
            "structure_in": st.sampled_from(["dense", "diagonal"]),
            "fallback": st.sampled_from(["none", "plain", {"use": "plain", "lr": 0.5}, {"step": "armijo"}]),
            "sampler": st.sampled_from(["none", "full-batch", {"fraction": 0.1}]),
            "step": st.sampled_from(["armijo", {"use": "picky", "count": 1}]),
        },
    )
)
def test_the_resolved_configuration_of_any_knobs_builds_the_same_plan(
    registry: Registry, method: dict[str, Any]
) -> None:
    plan = build(load(data={**SMALL, "method": method}), registry)
    assert same(again(plan, registry), plan)


def test_none_empties_a_place_that_the_method_fills(registry: Registry) -> None:
    plan = build(load(data=SMALL | {"method": {"use": "fake", "fallback": "none"}}), registry)
    assert plan.method.fallback is None
    assert again(plan, registry).method.fallback is None


def test_a_method_brings_its_sampler_and_the_configuration_overrides_it(registry: Registry) -> None:
    def sampler(method: str, **more: Any) -> Any:
        return build(load(data=SMALL | {"method": method} | more), registry).sampler

    assert sampler("fake") == SubsampledCurvature(Uniform(), fraction=0.5)
    assert sampler("fake", sampler={"fraction": 0.1}) == SubsampledCurvature(Uniform(), fraction=0.1)
    assert sampler("fake", sampler="full-batch") == FullBatch()
    assert sampler("plain", sampler={"batch_size": 3}) == Uniform(batch_size=3)


def test_precision_without_use_is_float32(registry: Registry) -> None:
    assert build(load(data=SMALL | {"precision": {"device": "cpu"}}), registry).backend == Full("float32")
    assert build(load(data=SMALL | {"precision": "float64"}), registry).backend == Full("float64")


def test_provenance_names_the_distribution_of_every_part_in_use(registry: Registry) -> None:
    provenance = build(
        load(data=SMALL | {"method": {"use": "fake", "fallback": "none"}}), registry
    ).provenance
    assert provenance["method/fake"] == provenance["estimator/layered"] == "curvlab-fake 1.2"
    assert provenance["task/quadratic"].startswith("curvlab ")
    assert "method/plain" not in provenance


def test_a_part_may_be_named_by_its_import_path_or_given_built(registry: Registry) -> None:
    by_path = SMALL | {"report": {"use": "curvlab.reporting.quiet:Quiet"}}
    assert [type(r) for r in build(load(data=by_path), registry).reporters] == [Quiet]
    built = SMALL | {"method": {"use": "plain", "step": Rate(0.25)}, "task": Quadratic(dimension=3)}
    plan = build(load(data=built), registry)
    assert (plan.task, plan.method.step) == (Quadratic(dimension=3), Rate(0.25))
    assert plan.resolved["task"]["dimension"] == 3
    assert "Rate(lr=0.25)" in plan.given
    assert same(again(plan, registry), plan)


def test_resolved_values_know_where_they_came_from(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[run]\nsteps = 3\n[task]\nuse = "quadratic"\n[method]\nuse = "fake"\nlr = 0.5\n')
    tree = resolve(load(file, ["run.seed=5"]), registry).tree
    method = tree.table["method"].table
    assert str(method["step"].table["lr"].origin) == f"{file}:7"
    assert str(method["damping"].table["value"].origin) == "method fake (curvlab_fake/methods/fake.toml:17)"
    assert str(tree.table["run"].table["seed"].origin) == "--set"
    assert str(tree.table["run"].table["keep"].origin) == "default"


def test_an_override_is_told_as_an_override(registry: Registry) -> None:
    with pytest.raises(ConfigError) as caught:
        build(load(data=SMALL, overrides=["method.lr=fast"]), registry)
    (fault,) = caught.value.faults
    assert str(fault).startswith("--set: method.lr: expected a number or a schedule")
    assert "    method.lr=fast" in str(fault)


def test_a_part_is_built_by_itself(registry: Registry) -> None:
    assert build_part(registry, Backend, "float64", {"device": "cpu"}) == Full("float64")
    with pytest.raises(ConfigError, match="float64"):
        build_part(registry, Backend, "flaot64")


def plugin(name: str, methods: dict[str, str], tmp_path: Path) -> Candidate:
    """A plugin whose method files have these texts."""
    package = tmp_path / f"curvlab_{name}"
    (package / "methods").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for method, text in methods.items():
        (package / "methods" / f"{method}.toml").write_text(text)
    module = ModuleType(f"curvlab_{name}_plugin")
    source = (
        "from curvlab import hookimpl\napi_version = '1.0'\n@hookimpl\n"
        f"def curvlab_register(registry):\n    registry.methods('curvlab_{name}')\n"
    )
    exec(source, vars(module))  # a plugin is a module with a hook; this one has no file
    return Candidate(name, f"curvlab-{name}", "3.0", lambda: module)


ABOUT = '[about]\nsummary = "x"\n'
BODY = '[method]\npreconditioner = "identity"\ndamping = "constant"\nstep = { use = "rate", lr = 0.1 }\n'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (
            ABOUT + '[knobs]\nlr = "step.lrr"\n' + BODY,
            4,
            'rate has no setting lrr\n    lr = "step.lrr"\n  Did you mean "lr"',
        ),
        (ABOUT + '[knobs]\nlr = "stepp.lr"\n' + BODY, 4, 'Did you mean "step"'),
        (
            ABOUT + '[knobs]\nlr = ["step.lr", "damping.value.x"]\n' + BODY,
            4,
            "path damping.value.x does not exist: x cannot be a setting",
        ),
        (ABOUT + '[knobs]\nb = "on_update.0.beta"\n' + BODY, 4, "there is no entry 0"),
        (ABOUT + '[knobs]\nb = "on_update.momentum.beta"\n' + BODY, 4, 'no entry with use = "momentum"'),
        (
            ABOUT + '[knobs]\nb = "fallback.lr"\n' + BODY,
            4,
            "the table that should hold lr is not in the file",
        ),
        (ABOUT + "[knobs]\nb = 3\n" + BODY, 4, "expected a path"),
        (
            ABOUT + '[knobs]\nb = { path = "step.lr" }\n' + BODY,
            4,
            "expected a table with the keys paths and help, and perhaps implies",
        ),
        (
            ABOUT + '[knobs]\nb = { paths = ["step.lr"], implies = { c = 1 } }\n' + BODY,
            4,
            "implies c, which is no other knob",
        ),
        (ABOUT + '[knob]\nlr = "step.lr"\n' + BODY, 3, 'Did you mean "knobs"'),
        ('[about]\nsumary = "x"\n' + BODY, 2, 'Did you mean "summary"'),
        (ABOUT, None, "[method] is missing"),
        (ABOUT + BODY + 'stepp = "armijo"\n', 7, "unknown place stepp"),
        (ABOUT + BODY.replace('"identity"', '"idntity"'), 4, 'Did you mean "identity"'),
        (ABOUT + BODY.replace("lr = 0.1", "lrr = 0.1"), 6, 'Did you mean "lr"'),
        (ABOUT + BODY.replace("lr = 0.1", 'lr = "x"'), 6, "expected a number or a schedule"),
        (ABOUT + BODY + 'fallback = "odd"\n', 7, "reached again through its own fallbacks"),
        ("[about\n", 1, "is not TOML"),
    ],
)
def test_a_faulty_method_file_is_the_plugins_fault(
    text: str, line: int | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "curvlab_odd", raising=False)
    registry = discover(plugins=[plugin("odd", {"odd": text, "fine": ABOUT + BODY}, tmp_path)], strict=True)
    with pytest.raises(PluginError) as caught:
        build(load(data=SMALL | {"method": "odd"}), registry)
    message = str(caught.value)
    assert "curvlab_odd/methods/odd.toml" + ("" if line is None else f":{line}:") in message
    assert says in message
    assert build(load(data=SMALL | {"method": "fine"}), registry).method_name == "fine"
    del sys.modules["curvlab_odd"]


def test_what_a_part_refuses_is_blamed_on_what_the_user_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """low < high must hold; the method file chose low, and the user a high below it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    body = BODY.replace('"constant"', '{ use = "levenberg-marquardt", low = 0.3, high = 0.6 }')
    registry = discover(plugins=[plugin("lm", {"lm": ABOUT + body}, tmp_path)], strict=True)
    with pytest.raises(ConfigError) as caught:
        build(load(data=SMALL | {"method": {"use": "lm", "damping": {"high": 0.1}}}), registry)
    assert [fault.path for fault in caught.value.faults] == ["method.damping.high"]
    del sys.modules["curvlab_lm"]


def test_a_method_file_means_the_parts_of_its_own_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another plugin that uses the same name makes it ambiguous for users, not for the method."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "site"))
    clashing = ModuleType("clashing")
    exec(
        "from curvlab import hookimpl\napi_version = '1.0'\n@hookimpl\n"
        "def curvlab_register(registry):\n"
        "    registry.add('estimator', 'layered', 'curvlab.parts.gauss_newton:GaussNewton', summary='x')\n"
        "    registry.add('step', 'rate', 'curvlab.parts.steps:Armijo', summary='x')\n",
        vars(clashing),
    )
    import curvlab_fake

    registry = discover(
        plugins=[
            Candidate("fake", "curvlab-fake", "1.2", lambda: curvlab_fake),
            Candidate("clashing", "curvlab-clashing", "1.0", lambda: clashing),
        ]
    )
    plan = build(load(data=SMALL | {"method": "fake"}), registry)
    assert type(plan.method.preconditioner.estimator).__name__ == "Layered"  # type: ignore[attr-defined]
    assert plan.method.step == Rate(0.03)
    assert plan.resolved["method"]["step"]["use"] == "curvlab:rate"
    assert same(again(plan, registry), plan)
    with pytest.raises(ConfigError, match="curvlab-clashing") as caught:
        build(load(data=SMALL | {"method": {"use": "fake", "step": "rate"}}), registry)
    assert 'use = "curvlab:rate"' in str(caught.value)
