"""Every benchmark once, in this process and environment: ``nox -s bench-smoke``.

    python asv_benchmarks/smoke.py [--only REGEX] [--slowest N]

Benchmarks are found and set up by asv's own code, so what runs here runs under asv.  Exits 1 if one raises,
or if one measures nothing for any of its parameters: in a working tree nothing is lacking.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import re
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
    given = parser.parse_args()
    sys.path.insert(0, str(HERE))
    begun, caches, seconds, wrong, counts = time.perf_counter(), {}, {}, [], dict.fromkeys((DONE, SKIPPED), 0)
    for benchmark in disc_benchmarks(str(HERE / "benchmarks")):
        if not re.search(given.only, benchmark.name):
            continue
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
