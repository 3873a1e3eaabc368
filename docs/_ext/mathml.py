"""Formulas as MathML, made while the site is built: browsers draw it, so a page loads no script.

The font, STIX Two Math, is taken from the package ``ziamath`` into the site: brackets and roots grow in a
font that has a table of mathematics alone, and not every reader has one.

Text that the converter does not know is a warning, which ``nox -s docs`` turns into a failure.
"""

from __future__ import annotations

import re
import shutil
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

FONT = "STIXTwoMath-Regular.ttf"

LOG = logging.getLogger(__name__)

#: letters of one upright word, each in an element of its own
UPRIGHT = re.compile(r'(?:<mi mathvariant="normal">[A-Za-z]</mi>){2,}')
LETTER = re.compile(r">([A-Za-z])<")
#: bars of a size or a norm, which as they are would be spaced as between two terms, and stretched over what
#: they hold
BAR = re.compile(r"<mo[^>]*>&#x(02016|0007C);</mo>")
#: a letter and its prime, which the font has small and raised already: as a superscript it would be so twice
PRIMED = re.compile(r"<msup>(<mi>[^<]+</mi>)<mi>&#x02032;</mi></msup>")
PRIMED_BELOW = re.compile(
    r"<msubsup>(<mi>[^<]+</mi>)(<(m[a-z]+)>(?:(?!</?msubsup>).)*?</\3>)<mi>&#x02032;</mi></msubsup>"
)
PRIME = '<mo lspace="0.05em" rspace="0">&#x02032;</mo>'
#: what is left of a command or an alignment that was not understood
UNKNOWN = re.compile(r"\\[A-Za-z]+|<mi>&(?:amp;)?</mi>")


def mathml(latex: str, *, block: bool) -> str:
    """MathML of a formula; raises ``ValueError`` for a command that the converter does not know."""
    text = convert(latex.strip(), display="block" if block else "inline")
    found = UNKNOWN.search(text)
    if found:
        raise ValueError(f"{found.group()} is not understood")
    text = BAR.sub(r'<mo stretchy="false" lspace="0.05em" rspace="0.05em">&#x\1;</mo>', text)
    text = PRIMED.sub(rf"<mrow>\1{PRIME}</mrow>", text)
    text = PRIMED_BELOW.sub(rf"<msub><mrow>\1{PRIME}</mrow>\2</msub>", text)
    return UPRIGHT.sub(lambda word: f"<mi>{''.join(LETTER.findall(word.group()))}</mi>", text)


def _inline(writer: Any, node: nodes.math) -> None:
    _write(writer, node, block=False)


def _block(writer: Any, node: nodes.math_block) -> None:
    _write(writer, node, block=True)


def _write(writer: Any, node: Any, *, block: bool) -> None:
    try:
        text = mathml(node.astext(), block=block)
    except Exception as error:  # the converter raises many kinds
        LOG.warning("formula %r: %s", node.astext(), error, location=node)
        text = writer.encode(node.astext())
    writer.body.append(f'<div class="formula">{text}</div>' if block else text)
    raise nodes.SkipNode


def _bring_font(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        with as_file(files("ziamath.fonts") / FONT) as font:
            shutil.copyfile(font, Path(app.outdir) / "_static" / FONT)


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer ``mathml``."""
    app.connect("build-finished", _bring_font)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
