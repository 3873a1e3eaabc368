"""Near misses: what a mistyped name was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``word``, or ``None`` if none is close."""
    names = sorted(set(known))
    plain = {name.lower().replace("_", "-"): name for name in names}
    folded = word.lower().replace("_", "-")
    if folded in plain:
        return plain[folded]
    close = get_close_matches(folded, plain, n=1, cutoff=0.6)
    return plain[close[0]] if close else None


def advice(word: str, known: Iterable[str], called: str) -> str:
    """``Did you mean "x"?  <called>: a, b, c.`` — the second sentence always, the first if one is close."""
    names = sorted(set(known))
    close = nearest(word, names)
    guess = f'Did you mean "{close}"?  ' if close else ""
    return f"{guess}{called}: {', '.join(names) if names else 'none'}."
