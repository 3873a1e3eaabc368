"""Plugins that are broken in every way that we know: what each does, and what the listing says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.registry.sites import ADDS, module, write_distribution


@dataclass(frozen=True)
class Broken:
    """A plugin's module, the status of its record, and what the record's reason says."""

    source: str
    status: str = "broken"
    says: str = ""


def hook(name: str, arguments: str, body: str) -> str:
    """A plugin in order but for one hook."""
    return module(more=f"import os, sys\n@hookimpl\ndef {name}({arguments}):\n    {body}\n")


def _printing(statement: str) -> Broken:
    return Broken(f"import atexit, io, os, signal, sys\n{statement}\n{module()}", "ok")


#: raised while the module is imported
IMPORTS: Mapping[str, Broken] = {
    "raises": Broken("raise RuntimeError('no luck')", says="RuntimeError: no luck ("),
    "exits": Broken("import sys\nsys.exit(0)", says="SystemExit: 0 ("),
    "exits-with-words": Broken("raise SystemExit('bye')", says="SystemExit: bye ("),
    "parses-arguments": Broken(
        "import argparse\nargparse.ArgumentParser().parse_args(['--no-such-option'])", says="SystemExit: 2 ("
    ),
    "bare": Broken("raise BaseException('bare')", says="BaseException: bare ("),
    "generator": Broken("raise GeneratorExit", says="GeneratorExit ("),
    "own-base": Broken("class Own(BaseException): pass\nraise Own('mine')", says="Own: mine ("),
    "canceled": Broken("import asyncio\nraise asyncio.CancelledError", says="CancelledError ("),
    "misspells": Broken("import no_such_module_here", says="No module named 'no_such_module_here' ("),
    "garbles": Broken("def (:", says="SyntaxError: invalid syntax"),
    "encodes": Broken("# coding: no-such-encoding", says="SyntaxError: "),
    "recurses": Broken("def f(): f()\nf()", says="RecursionError: maximum recursion depth exceeded"),
    "exhausts": Broken("raise MemoryError", says="MemoryError ("),
    "asserts": Broken("assert not 1", says="AssertionError ("),
    "unspeakable": Broken(
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E", says="cannot be shown"
    ),
    "long-winded": Broken("raise ValueError('x' * 10**6)", says="xx… ("),
    "surrogates": Broken("raise ValueError('\\udcff')", says="ValueError: \\udcff ("),
    "escapes": Broken("raise ValueError('\\x1b[2J\\nmore')", says="ValueError: \\x1b[2J more ("),
}

#: printed, closed or changed while the module is imported: in order otherwise
SURROUNDINGS: Mapping[str, Broken] = {
    "prints": _printing("print('loud')"),
    "writes": _printing("os.write(1, b'loud')"),
    "spawns": _printing("os.system('echo loud')"),
    "buffers": _printing("sys.__stdout__.write('loud')"),
    "prints-at-exit": _printing("atexit.register(lambda: os.write(1, b'loud'))"),
    "closes-stdout": _printing("sys.stdout.close()"),
    "closes-descriptor": _printing("os.close(1)"),
    "loses-stdout": _printing("sys.stdout = None"),
    "wraps-stdout": _printing("sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')"),
    "moves": _printing("os.chdir('/')"),
    "clears-arguments": _printing("sys.argv.clear()"),
    "ignores-interrupts": _printing("signal.signal(signal.SIGINT, signal.SIG_IGN)"),
}

#: imported, and then no plugin of ours
SHAPES: Mapping[str, Broken] = {
    "mute": Broken("", "incompatible", "does not set api_version"),
    "old": Broken(module().replace("1.0", "2.0"), "incompatible", "the major versions differ"),
    "odd-version": Broken(
        "class V:\n    def __str__(self): raise GeneratorExit\napi_version = V()", says="GeneratorExit ("
    ),
    "miscalls": Broken(hook("curvlab_run_started", "manifests", "pass"), says="Argument(s) {'manifests'}"),
    "invents": Broken(hook("curvlab_run_start", "manifest", "pass"), says="unknown hook"),
    "register-exits": Broken(module("raise SystemExit(0)"), says="SystemExit: 0 ("),
    "register-leaves": Broken(module("raise GeneratorExit"), says="GeneratorExit ("),
    "register-repeats": Broken(module((ADDS + "\n    " + ADDS).format(name="x")), says="registered twice"),
    "summary-of-no-text": Broken(
        module('registry.add("step", "s1", "a:b", summary=3)'), says="summary must be one line"
    ),
    "summary-of-codes": Broken(
        module('registry.add("step", "s2", "a:b", summary="\\x1b[2J")'), says="summary must be one line"
    ),
    "source-of-no-text": Broken(
        module('registry.add("task", "t1", "a:b", summary="x", source=object())'),
        says="source must be one line",
    ),
    "preset-object": Broken(
        module('registry.add("step", "s3", "a:b", summary="x", lr=object())'), says="no value of TOML"
    ),
    "preset-nan": Broken(
        module('registry.add("step", "s4", "a:b", summary="x", lr=float("nan"))'), says="no value of TOML"
    ),
    "methods-nowhere": Broken(module('registry.methods("json")'), says="json has no folder methods/"),
}

#: loaded in order, and broken when they are called
CALLS: Mapping[str, Broken] = {
    "cli-exits": Broken(hook("curvlab_cli", "app", "sys.exit(0)"), "ok"),
    "cli-unreadable": Broken(
        hook("curvlab_cli", "app", "app.command('unreadable')(lambda x=print: None)\n    ")
        + "\nclass Odd: pass\n@hookimpl\ndef curvlab_cli(app):\n    def odd(x: Odd): pass\n"
        "    app.command('odd')(odd)\n",
        "ok",
    ),
    "cli-nameless": Broken(
        hook("curvlab_cli", "app", "import functools; app.command()(functools.partial(print))"), "ok"
    ),
    "part-exits": Broken(
        "import sys\nif __name__ == 'mod_part_exits_part': sys.exit(0)\n"
        + module('registry.add("step", "exiting", "mod_part_exits_part:Step", summary="exits when used")'),
        "ok",
    ),
    "started-exits": Broken(hook("curvlab_run_started", "manifest", "sys.exit(0)"), "ok"),
    "started-leaves": Broken(hook("curvlab_run_started", "manifest", "raise GeneratorExit"), "ok"),
    "stepped-raises": Broken(hook("curvlab_step_finished", "record", "raise BaseException('no')"), "ok"),
    "finished-exits": Broken(hook("curvlab_run_finished", "summary", "sys.exit(0)"), "ok"),
    "hooks-print": Broken(hook("curvlab_run_finished", "summary", "os.write(1, b'loud'); print(1)"), "ok"),
}

#: hooks of a run that raise: each becomes an event of its own
RAISING_HOOKS = ("started-exits", "started-leaves", "stepped-raises", "finished-exits")

PLUGINS: Mapping[str, Broken] = {**IMPORTS, **SURROUNDINGS, **SHAPES, **CALLS}

#: text of a method's file, by the method's name: listed with its error
METHODS: Mapping[str, str] = {
    "no-toml": "[method",
    "too-deep": "a = " + "[" * 20_000 + "]" * 20_000,
    "too-long": f"a = {'1' * 5_000}",
    "no-summary": "[about]\nsummary = 3\n",
}

#: entry_points.txt of distributions that cannot be read; torch, too, does not survive these
UNREADABLE: Mapping[str, bytes] = {
    "dist-lists-nothing": b"[curvlab]\nno equals sign\n",
    "dist-of-bytes": b"[curvlab]\n\xff = x\n",
}


def mod(name: str) -> str:
    """The module of a plugin."""
    return f"mod_{name.replace('-', '_')}"


def write_one(site: Path, name: str) -> None:
    """The distribution of one plugin of ``PLUGINS``."""
    write_distribution(site, f"dist-{name}", {mod(name): PLUGINS[name].source}, {name: mod(name)})


def write_all(site: Path) -> tuple[str, ...]:
    """Every broken plugin in one site; their names."""
    for name in PLUGINS:
        write_one(site, name)
    (site / "mod_part_exits_part.py").write_text("raise SystemExit(0)\n")
    write_distribution(site, "dist-methods", {}, {"bad-methods": "pack_methods"})
    (site / "pack_methods" / "methods").mkdir(parents=True)
    (site / "pack_methods" / "__init__.py").write_text(module('registry.methods("pack_methods")'))
    for name, text in METHODS.items():
        (site / "pack_methods" / "methods" / f"{name}.toml").write_text(text)
    write_distribution(site, "dist-absent", {}, {"absent": "mod_that_is_not_there:plugin"})
    good = module(ADDS.format(name="mine"))
    write_distribution(site, "dist-good", {"mod_good": good}, {"good": "mod_good"})
    return (*PLUGINS, "bad-methods", "absent", "good")
