"""English text that Debian packages: the verses of the King James Bible."""

from __future__ import annotations

import shutil
import subprocess

from curvlab.errors import DataError

#: everything, for Debian's ``bible`` (package bible-kjv, which reads bible-kjv-text)
WHOLE = "gen1:1-rev22:21"


def verses(without: str) -> list[str]:
    """The 31,102 verses, in order, without their numbers.

    Raises ``DataError`` if the program ``bible`` is missing, with the message ``without``, or prints nothing.
    """
    program = shutil.which("bible")
    if program is None:
        raise DataError(without)
    # -f: a verse on each line, behind its number
    done = subprocess.run([program, "-f", WHOLE], capture_output=True, text=True, check=False)
    found = [line.partition(" ")[2].strip() for line in done.stdout.splitlines()]
    found = [verse for verse in found if verse]
    if done.returncode or not found:
        why = done.stderr.strip() or "no verses; is bible-kjv-text installed?"
        raise DataError(f"{program} -f {WHOLE}: {why}")
    return found
