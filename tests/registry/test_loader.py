"""Loading plugins: whatever one of them does, the others and core are there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from curvlab import __version__
from curvlab.errors import ConfigError, PluginError, UsageError
from curvlab.registry import API_VERSION, PluginRecord, Registry, discover, installed
from curvlab.registry.loader import block, candidates
from tests.registry.sites import ADDS, module, write_distribution

RegistryWith = Callable[..., Registry]

#: ways to be broken, and what the record's reason says
BROKEN = {
    "raises": ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
    "exits": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "misspells": ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
    "garbles": ("def (:", "SyntaxError: invalid syntax"),
    "miscalls": (
        module(more="@hookimpl\ndef curvlab_run_started(manifests):\n    pass\n"),
        "Argument(s) {'manifests'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "invents": (
        module(more="@hookimpl\ndef curvlab_run_start(manifest):\n    pass\n"),
        'unknown hook "curvlab_run_start". Did you mean "curvlab_run_started"?',
    ),
    "wraps": (
        module(more="@hookimpl(wrapper=True)\ndef curvlab_cli(app):\n    yield\n"),
        'hook "curvlab_cli" is a wrapper',
    ),
    "halfway": (
        module(ADDS.format(name="half") + "\n    raise KeyError('then this')"),
        "KeyError: 'then this'",
    ),
    "miskinds": (module('registry.add("stp", "x", "a:b", summary="x")'), 'unknown kind "stp" of part "x"'),
    "misnames": (module('registry.add("step", "X Y", "a:b", summary="x")'), 'step name "X Y"'),
    "reserves": (module('registry.add("step", "none", "a:b", summary="x")'), 'step name "none"'),
    "mispoints": (module('registry.add("step", "x", "a.b.c", summary="x")'), "not an import string"),
    "mumbles": (module('registry.add("step", "x", "a:b", summary="")'), "summary must be one line"),
    "repeats": (module((ADDS + "\n    " + ADDS).format(name="x")), 'step "x" is registered twice'),
    "empties": (module('registry.methods("json")'), "json has no folder methods/"),
}

VERSIONS = {
    "": 'write api_version = "1.0" at its top',
    "2.0": "the major versions differ",
    "0.9": "the major versions differ",
    "1.1": "update curvlab",
    "one": 'expected api_version = "major.minor", got',
    "1.0.0": 'expected api_version = "major.minor", got',
}


def record(registry: Registry, name: str) -> PluginRecord:
    (found,) = [r for r in registry.plugins if r.name == name]
    return found


def step_names(registry: Registry) -> set[str]:
    return {entry.name for entry in registry.parts("step")}


def test_core_comes_first_and_by_the_same_door(registry_with: RegistryWith) -> None:
    registry = registry_with({})
    (core,) = registry.plugins
    assert (core.name, core.distribution, core.version, core.status) == ("core", "curvlab", __version__, "ok")
    assert core.api_version == API_VERSION
    assert "step/armijo" in core.parts


def test_a_plugin_in_order_is_recorded_with_hooks_and_parts(registry_with: RegistryWith) -> None:
    registry = registry_with(
        {"good": module(ADDS.format(name="mine"), "@hookimpl\ndef curvlab_cli(app):\n    pass\n")}
    )
    assert record(registry, "good") == PluginRecord(
        "good", "dist-good", "1.0", "ok", "", ("curvlab_cli", "curvlab_register"), "1.0", ("step/mine",)
    )
    assert registry.part("step", "mine").origin == "dist-good 1.0"


@pytest.mark.parametrize("way", BROKEN)
def test_a_broken_plugin_is_recorded_and_harms_nothing_else(way: str, registry_with: RegistryWith) -> None:
    source, reason = BROKEN[way]
    registry = registry_with({"bad": source, "good": module(ADDS.format(name="mine"))})
    bad = record(registry, "bad")
    assert bad.status == "broken"
    assert reason in bad.error
    assert reason.split("\n")[0][:20] in bad.reason
    assert "Traceback (most recent call last)" in bad.error
    assert record(registry, "good").status == "ok"
    assert step_names(registry) == {"rate", "armijo", "grid", "quadratic-model", "mine"}
    assert registry.clashes() == {}


def test_what_a_plugin_added_before_it_broke_is_known_as_its_own(registry_with: RegistryWith) -> None:
    registry = registry_with({"bad": BROKEN["halfway"][0]})
    assert record(registry, "bad").parts == ("step/half",)
    with pytest.raises(PluginError, match="is broken: KeyError: 'then this'"):
        registry.part("step", "half")


def test_a_broken_plugin_is_an_error_only_when_its_part_is_asked_for(registry_with: RegistryWith) -> None:
    registry = registry_with({"bad": BROKEN["raises"][0]})
    assert registry.part("step", "rate").name == "rate"
    for use in ("bad", "dist-bad:anything", "dist_bad:anything", "dist-bad"):
        with pytest.raises(PluginError, match="which is broken: RuntimeError: no luck"):
            registry.part("step", use)
    with pytest.raises(ConfigError, match='Plugin "bad" is broken and may contain it: RuntimeError: no luck'):
        registry.part("step", "something-else")


@pytest.mark.parametrize("api", VERSIONS)
def test_another_api_version_is_incompatible_and_registers_nothing(
    api: str, registry_with: RegistryWith
) -> None:
    source = module(ADDS.format(name="mine")).replace(
        'api_version = "1.0"', f'api_version = "{api}"' if api else ""
    )
    registry = registry_with({"old": source})
    old = record(registry, "old")
    assert (old.status, old.api_version) == ("incompatible", api)
    assert VERSIONS[api] in old.error
    assert API_VERSION in old.error
    assert "mine" not in step_names(registry)
    with pytest.raises(PluginError, match="which is incompatible"):
        registry.part("step", "old")


def test_two_distributions_may_name_their_plugins_alike(registry_with: RegistryWith, site: Path) -> None:
    for letter in "ab":
        source = module(ADDS.format(name=f"step-{letter}"))
        write_distribution(site, f"twin-{letter}", {f"twin_{letter}": source}, {"twin": f"twin_{letter}"})
    registry = discover(plugins=[c for c in candidates() if c.distribution.startswith("twin-")])
    twins = [r for r in registry.plugins if r.name == "twin"]
    assert [r.status for r in twins] == ["clash", "clash"]
    assert 'plugin name "twin" is also used by twin-b' in twins[0].error
    assert {"step-a", "step-b"} <= step_names(registry)


def test_a_clash_of_part_names_is_an_error_when_the_bare_name_is_asked_for(
    registry_with: RegistryWith,
) -> None:
    registry = registry_with({name: module(ADDS.format(name="same")) for name in ("a", "b")})
    assert [record(registry, name).status for name in "ab"] == ["clash", "clash"]
    assert record(registry, "a").error == 'step "same" is also registered by dist-b'
    with pytest.raises(ConfigError) as caught:
        registry.part("step", "same")
    assert 'step "same" is registered by dist-a 1.0 and dist-b 1.0' in str(caught.value)
    assert 'use = "dist-a:same" or use = "dist-b:same"' in str(caught.value)
    assert registry.part("step", "dist-b:same").distribution == "dist-b"
    assert registry.part("step", "Dist_B:same").distribution == "dist-b"


def test_a_plugin_that_takes_a_name_of_core_is_to_blame_and_core_is_not(registry_with: RegistryWith) -> None:
    registry = registry_with({"thief": module(ADDS.format(name="armijo"))})
    assert record(registry, "thief").status == "clash"
    assert record(registry, "core").status == "ok"
    assert registry.part("step", "curvlab:armijo").distribution == "curvlab"
    assert registry.part("step", "armijo", prefer="dist-thief").distribution == "dist-thief"
    assert registry.part("step", "armijo", prefer="somebody-else").distribution == "curvlab"


def test_one_distribution_with_two_plugins_that_add_one_name_keeps_the_first(site: Path) -> None:
    source = module(ADDS.format(name="same"))
    write_distribution(site, "pair", {"pair_a": source, "pair_b": source}, {"a": "pair_a", "b": "pair_b"})
    registry = discover(plugins=[c for c in candidates() if c.distribution == "pair"])
    assert [record(registry, name).status for name in "ab"] == ["ok", "broken"]
    assert registry.part("step", "same").name == "same"


@pytest.mark.parametrize("word", ["good", "dist-good", "dist-good:good"])
def test_a_blocked_plugin_is_not_even_imported(word: str, registry_with: RegistryWith) -> None:
    registry = registry_with({"good": "raise AssertionError('imported')"}, disable=[word])
    good = record(registry, "good")
    assert good.status == "blocked"
    assert "CURVLAB_DISABLE_PLUGINS" in good.error
    with pytest.raises(ConfigError, match='Plugin "good" is blocked'):
        registry.part("step", "good")


def test_the_allow_list_blocks_everybody_else(registry_with: RegistryWith) -> None:
    sources = {name: module(ADDS.format(name=f"of-{name}")) for name in ("a", "b")}
    registry = registry_with(sources, allow=["b"])
    assert [record(registry, name).status for name in "ab"] == ["blocked", "ok"]
    assert "CURVLAB_PLUGINS" in record(registry, "a").error


def test_strict_lists_every_unusable_plugin_at_once_but_no_blocked_one(registry_with: RegistryWith) -> None:
    sources = {"bad": BROKEN["raises"][0], "old": "", "shy": "raise RuntimeError"}
    with pytest.raises(PluginError) as caught:
        registry_with(sources, strict=True, disable=["shy"])
    message = str(caught.value)
    assert 'plugin "bad" (dist-bad 1.0) is broken: RuntimeError: no luck' in message
    assert 'plugin "old" (dist-old 1.0) is incompatible' in message
    assert "shy" not in message


def test_a_plugin_that_prints_does_not_write_on_stdout(
    registry_with: RegistryWith, capsys: pytest.CaptureFixture[str]
) -> None:
    registry_with({"loud": "print('hello')\n" + module("print('again')")})
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "hello\nagain\n"


def test_a_slow_plugin_is_in_order_and_its_record_says_how_slow_and_why(
    registry_with: RegistryWith, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curvlab.registry.records.SLOW", 0.1)
    (site / "tensorflow.py").write_text("import time\ntime.sleep(0.2)\n")
    sources = {"heavy": "import tensorflow\n", "dozy": "import time\ntime.sleep(0.2)\n", "quick": ""}
    registry = registry_with({n: s + module(ADDS.format(name=f"of-{n}")) for n, s in sources.items()})
    heavy, dozy, quick = (record(registry, name) for name in ("heavy", "dozy", "quick"))
    assert [r.status for r in (heavy, dozy, quick)] == ["ok", "ok", "ok"]
    # whoever comes first imports it; by name that is heavy
    assert re.fullmatch(
        r"slow: it takes 0\.[2-9] s to load because it imports tensorflow, .*`-p no:heavy` .*", heavy.slow
    )
    assert re.fullmatch(r"slow: it takes 0\.[2-9] s to load, .*`-p no:dozy` .*", dozy.slow)
    assert (quick.slow, quick.heavy) == ("", ())
    assert {"of-heavy", "of-dozy", "of-quick"} <= step_names(registry)


def test_a_broken_plugin_may_be_slow_too(
    registry_with: RegistryWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curvlab.registry.records.SLOW", 0.1)
    bad = record(registry_with({"bad": "import time\ntime.sleep(0.2)\nraise RuntimeError('no luck')"}), "bad")
    assert bad.status == "broken"
    assert re.fullmatch(r"RuntimeError: no luck \(.*mod_bad\.py:3\)", bad.reason)
    assert bad.slow.startswith("slow: ")


def test_a_plugin_may_be_an_object_of_a_module(site: Path) -> None:
    source = module().replace(
        "@hookimpl\ndef curvlab_register(registry):",
        "class P:\n  api_version = '1.0'\n  @hookimpl\n  def curvlab_register(self, registry):",
    )
    write_distribution(
        site, "objects", {"objects_mod": source + "\nplugin = P()\n"}, {"o": "objects_mod:plugin"}
    )
    registry = discover(plugins=[c for c in candidates() if c.distribution == "objects"])
    assert record(registry, "o").status == "ok"


def test_the_environment_says_what_is_installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for letter in "ab":
        write_distribution(
            site, f"env-{letter}", {f"env_{letter}": module()}, {f"env-{letter}": f"env_{letter}"}
        )

    def statuses() -> dict[str, str]:
        return {r.name: r.status for r in installed().plugins if r.name.startswith("env-")}

    monkeypatch.setenv("CURVLAB_PLUGINS", "env-a, env-b")
    monkeypatch.setenv("CURVLAB_DISABLE_PLUGINS", "")
    monkeypatch.delenv("CURVLAB_STRICT", raising=False)
    assert statuses() == {"env-a": "ok", "env-b": "ok"}
    assert installed() is installed()
    monkeypatch.setenv("CURVLAB_DISABLE_PLUGINS", "env-b")
    assert statuses() == {"env-a": "ok", "env-b": "blocked"}
    monkeypatch.setenv("CURVLAB_PLUGINS", "")
    assert set(statuses().values()) == {"blocked"}


def test_blocking_reaches_the_environment_and_refuses_unknown_names(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_distribution(site, "env-c", {"env_c": module()}, {"env-c": "env_c"})
    monkeypatch.setenv("CURVLAB_DISABLE_PLUGINS", "x")
    block(["env-c", "env-c"])
    assert os.environ["CURVLAB_DISABLE_PLUGINS"] == "x,env-c"
    with pytest.raises(UsageError, match='Did you mean "env-c"'):
        block(["evn-c"])
    with pytest.raises(UsageError, match="core cannot be blocked"):
        block(["core"])
