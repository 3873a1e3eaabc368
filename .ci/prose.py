"""The mechanical rules of our prose that no spelling checker has: words to avoid, and sentences too long.

    python .ci/prose.py [FILE…]

reads the pages, READMEs and change notes, and of Python files the docstrings and the texts of errors; without
arguments those of the whole tree.  It prints ``file:line: fault`` and exits with 1 if it found any.  Code
blocks, inline code, formulas, tables' rules, comments and quotations are not prose of ours and are skipped.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: words of a sentence of a page, at most
LONGEST = 40

#: pages that are written by a program, or are a record of what was written on a day
GENERATED = "<!-- written by"

#: what to avoid, and what to write instead
AVOIDED = {
    r"borne|bears?|bore": "hold, support or allow",
    r"come by|comes by|came by": "get or obtain",
    r"whoever": "a user who, code that",
    r"nobody|everybody": "name the actor: no caller, every rank",
    r"hitherto": "so far",
    r"laid over": "name the operation: added to, merged with",
    r"dear": "expensive",
    r"things?": "name it",
    r"what (?:it|they) (?:is|are) of|is of(?! (?:rank|order|size|full|no ))": "name the relation: belongs to, has, is a",
    r"as (?:it was|they were) written": "unchanged",
}
#: words that no sentence begins with
OPENERS = ("Of", "Likewise")


@dataclass(frozen=True)
class Fault:
    """One place that breaks a rule."""

    file: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


def faults(text: str, file: Path, first: int = 1, longest: int | None = LONGEST) -> Iterator[Fault]:
    """What breaks a rule in prose that begins at the line ``first`` of ``file``."""
    for at, sentence in sentences(text):
        line = first + at
        for pattern, instead in AVOIDED.items():
            for found in re.finditer(rf"\b(?:{pattern})\b", sentence):
                yield Fault(file, line, f"“{found[0]}” is a word we avoid; instead: {instead}")
        if sentence.split(" ", 1)[0] in OPENERS:
            yield Fault(file, line, f"a sentence begins with “{sentence.split()[0]}”; begin with its subject")
        words = len(re.findall(r"\w[\w’'./-]*", sentence))
        if longest is not None and words > longest:
            yield Fault(file, line, f"a sentence of {words} words, at most {longest}: “{sentence[:40]}…”")


#: one sentence ends and the next one begins: a capital letter or a code follows
_END = re.compile(r"(?<=[.!?])[”)*_]*\s+(?=[*_“(\[]*[A-Z`§])|(?<=:)\s*\n\s*\n")
_ABBREVIATED = re.compile(r"\b(?:e\.g|i\.e|et al|cf|Fig|Eq|Eqs|Sec|vs|Alg|App|Thm|No|approx)\.$")


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Sentences of running text with the lines that they begin at, counted from 0."""
    for block in re.finditer(r"(?:[^\n]*\S[^\n]*(?:\n|$))+", text):
        start = block.start()
        begin = start
        for end in [*(m for m in _END.finditer(text, start, block.end())), None]:
            stop = block.end() if end is None else end.start()
            if end is not None and _ABBREVIATED.search(text[begin:stop]):
                continue
            sentence = " ".join(text[begin:stop].split())
            if sentence:
                yield text.count("\n", 0, begin), sentence
            begin = stop if end is None else end.end()


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


#: what stands in a page and is no running text, with what stays of it
_NO_PROSE = (
    (re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2`*\s*$", re.M | re.S), _blank),
    (re.compile(r"<!--.*?-->", re.S), _blank),
    (re.compile(r"\$\$.*?\$\$", re.S), _blank),
    (re.compile(r"(`+)[^`]+?\1"), lambda m: "`x`" + _blank(m)),
    (re.compile(r"\$[^$\n]+\$"), lambda m: "`x`"),
    (re.compile(r"\]\([^)\s]*\)"), lambda m: "]"),
    (re.compile(r"“[^”\n]{60,}”"), lambda m: "“x”"),  # long quotations are others' sentences
    (re.compile(r"<[^<>]+>"), _blank),
    (re.compile(r"^\s*(?:\||>|:::|#).*$", re.M), lambda m: ""),  # tables, quotations, directives, headings
    (re.compile(r"^\s*(?:[-*+]|\d+\.) +", re.M), lambda m: "\n"),  # an item begins anew
)


def prose(markdown: str) -> str:
    """The running text of a page, without blocks of code, formulas, tables and targets of links."""
    for pattern, stays in _NO_PROSE:
        markdown = pattern.sub(stays, markdown)
    return markdown


def pieces(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings and the texts of raised errors of a module, with the lines that they begin at."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and ast.get_docstring(node)
            ):
                yield first.lineno, _of_docstring(str(first.value.value))
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args:
                yield argument.lineno, _of_message(argument)


def _of_docstring(text: str) -> str:
    text = re.sub(r"::\n\n(?: +\S.*\n|\n)+", lambda m: "::\n\n" + _blank(m)[2:], text)  # a literal block
    return prose(re.sub(r":(?:math|func|class|meth):", "", text))


def _of_message(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_of_message(v) if isinstance(v, ast.Constant) else "`x`" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _of_message(node.left) + _of_message(node.right)
    return ""


def faults_of(file: Path, shown: Path) -> Iterator[Fault]:
    """What breaks a rule in a file of prose or of Python."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield from faults(prose(text), shown)
    else:
        for first, piece in pieces(text):
            yield from faults(piece, shown, first)


#: what is read when no file is named
READ = re.compile(
    r"README\.md|docs/.*\.md|plugins/\w+/README\.md|changelog\.d/.*\.md"
    r"|(?:curvlab|plugins/\w+/curvlab_\w+|examples|docs/_ext|asv_benchmarks|\.ci)/.*\.py|noxfile\.py"
)


def tracked() -> list[Path]:
    """The files of the tree that hold prose, relative to it."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.splitlines() if READ.fullmatch(name) and (ROOT / name).is_file()]


def main(arguments: list[str]) -> int:
    """Print every fault; 1 if there is any."""
    found = [fault for name in arguments or tracked() for fault in faults_of(ROOT / name, Path(name))]
    print(*found, sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
