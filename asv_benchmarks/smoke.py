"""Every benchmark once, in this process and environment: ``nox -s bench-smoke``.

    python asv_benchmarks/smoke.py [--only REGEX] [--slowest N] [--jobs N]

Benchmarks are found and set up by asv's own code, so what runs here runs under asv.  Exits 1 if one raises,
or if one measures nothing for any of its parameters: in a working tree nothing is lacking.  With ``--jobs``,
as many processes share the benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from asv_runner.discovery import disc_benchmarks

HERE = Path(__file__).resolve().parent

#: what a benchmark may find for a parameter
DONE, SKIPPED, FAILED = "done", "skipped", "failed"


def main() -> int:
    """Print what went wrong, what was slowest, and a count."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--slowest", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share them")
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.jobs > 1:
        return in_processes(given)
    sys.path.insert(0, str(HERE))
    begun, caches, seconds, wrong, counts = time.perf_counter(), {}, {}, [], dict.fromkeys((DONE, SKIPPED), 0)
    mine, of = given.share
    found_here = [b for b in disc_benchmarks(str(HERE / "benchmarks")) if re.search(given.only, b.name)]
    for benchmark in sorted(found_here, key=lambda b: b.name)[mine::of]:
        at = time.perf_counter()
        found = [outcome(benchmark, values, caches) for values in itertools.product(*benchmark._params)]
        seconds[benchmark.name] = time.perf_counter() - at
        for kind in counts:
            counts[kind] += found.count(kind)
        if FAILED in found:
            wrong.append(f"{benchmark.name}: {found.count(FAILED)} of {len(found)} failed")
        elif DONE not in found:
            wrong.append(f"{benchmark.name} measures nothing here: every case was skipped")
    for name in sorted(seconds, key=lambda n: -seconds[n])[: given.slowest]:
        print(f"{seconds[name]:6.1f} s  {name}")
    whole = time.perf_counter() - begun
    done, skipped = counts[DONE], counts[SKIPPED]
    print(f"{len(seconds)} benchmarks, {done} cases measured, {skipped} without meaning, in {whole:.0f} s")
    print("\n".join(wrong))
    return int(bool(wrong))


def in_processes(given: argparse.Namespace) -> int:
    """Several processes of this script, each with a share of the benchmarks; 1 if one of them failed."""
    command = [sys.executable, __file__, "--only", given.only, "--slowest", str(given.slowest), "--share"]
    shares = [subprocess.Popen([*command, str(k), str(given.jobs)]) for k in range(given.jobs)]
    codes = [process.wait() for process in shares]
    return int(any(codes))


def outcome(benchmark: Any, values: tuple[Any, ...], caches: dict[Any, Any]) -> str:
    """What comes of one case; an error is printed."""
    try:
        benchmark._current_params = values
        if benchmark._setup_cache is not None:
            key = benchmark.setup_cache_key
            if key not in caches:
                caches[key] = benchmark.do_setup_cache()
            benchmark.set_cache(caches[key])
        with contextlib.redirect_stdout(io.StringIO()):  # asv tells of every case that it skips
            skipped = benchmark.do_setup()
        if skipped:
            return SKIPPED
        try:
            benchmark.func(*benchmark._build_params())
        finally:
            benchmark.do_teardown()
    except NotImplementedError:
        return SKIPPED
    except Exception:  # whatever a benchmark raises is what is asked here
        print(f"{benchmark.name}{values}", file=sys.stderr)
        traceback.print_exc()
        return FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
