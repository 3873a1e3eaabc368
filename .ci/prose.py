"""The mechanical rules of our prose: American spelling, by codespell; words to avoid; long sentences.

    python .ci/prose.py [FILE…]

Spelling is checked in every file.  The rest is checked in pages, READMEs and change notes, and in docstrings
and the texts of errors; code, formulas, tables, comments and quotations are skipped.  Without arguments, the
whole tree is read.  Prints ``file:line: fault`` and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: British words that codespell's own dictionary lacks, and what to write
DICTIONARY = ROOT / ".ci" / "american.txt"

#: words between full stops or semicolons, at most: the style asks for 25, and no tool should decide about 30
LONGEST = 40

#: what to avoid, and what to write instead
AVOIDED = {
    r"borne|bears?|bore": "hold, support or allow",
    r"come by|comes by|came by": "get or obtain",
    r"whoever": "a user who, code that",
    r"nobody|everybody|somebody|anybody": "name the actor: no caller, every rank",
    r"(?:is|are|was|were|be|been|not) (?:told|heard|lent)|hears": "say what happens: passed, read, called",
    r"hitherto": "so far",
    r"laid over": "name the operation: added to, merged with",
    r"dear": "expensive",
    r"things?": "name it",
    r"is of(?! (?:rank|order|size|type|full|no use))": "name the relation: belongs to, has, is a",
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


def faults(text: str, file: Path, first: int = 1) -> Iterator[Fault]:
    """What breaks a rule in prose that begins at the line ``first`` of ``file``."""
    for at, sentence in sentences(text):
        line = first + at
        for pattern, instead in AVOIDED.items():
            for found in re.finditer(rf"\b(?:{pattern})\b", sentence, re.IGNORECASE):
                yield Fault(file, line, f"“{found[0]}” is a word we avoid; instead: {instead}")
        if sentence.split(" ", 1)[0] in OPENERS:
            yield Fault(file, line, f"a sentence begins with “{sentence.split()[0]}”; begin with its subject")
        for part in sentence.split(";"):
            words = len(_WORD.findall(part))
            if words > LONGEST:
                yield Fault(
                    file, line, f"{words} words without a stop, at most {LONGEST}: “{part.strip()[:40]}…”"
                )


_WORD = re.compile(r"\w[\w’'./-]*")
#: one sentence ends and the next one begins: a capital letter or a code follows
_END = re.compile(r"(?<=[.!?])[”)*_]*\s+(?=[*_“\"(\[]*[A-Z`§])|\s*\x1e")
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
            sentence = " ".join(text[begin:stop].replace(_ITEM, " ").split())
            if sentence:
                yield text.count("\n", 0, begin), sentence
            begin = stop if end is None else end.end()


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


#: stands for the mark of a heading or of an item of a list: a sentence ends before it
_ITEM = "\x1e"
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
    (re.compile(r"^[ \t]*(?:\||>|:::).*$", re.M), lambda m: ""),  # tables, quotations, directives
    (re.compile(r"^[ \t]*(?:[-*+]|\d+\.|#+) +", re.M), lambda m: _ITEM),
)


def prose(markdown: str) -> str:
    """The running text of a page, without blocks of code, formulas, tables and targets of links."""
    for pattern, stays in _NO_PROSE:
        markdown = pattern.sub(stays, markdown)
    return markdown


#: tables, trees and blocks of code in a docstring: indented, or between rules
_SET_APART = re.compile(r"^(?: {2,}.*|=+ .*\n(?:.*\n)*?=+ .*\n(?:(?:.+\n)*?=+ .*)?)$", re.M)


#: the names of what takes the text of an error or of a warning
_SAYS = re.compile(r"(?:Error|Refused|Unsupported\w+|Diverged|[Ff]ault|^warn)$")


def pieces(source: str) -> Iterator[tuple[int, str]]:
    """Docstrings of a module, and the texts of its errors and warnings, with the lines that they begin at."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if first is not None and ast.get_docstring(node) is not None:
                yield first.lineno, _of_docstring(ast.get_docstring(node, clean=False) or "")
        elif isinstance(node, ast.Call) and _SAYS.search(_name(node.func)):
            for argument in node.args:
                yield argument.lineno, _of_message(argument)


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _of_docstring(text: str) -> str:
    running = inspect.cleandoc(text)
    return prose(_SET_APART.sub(_blank, running))


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


#: where there is prose: pages, and modules that users or developers read
READ = re.compile(
    r"README\.md|docs/.*\.md|plugins/\w+/README\.md|changelog\.d/.*\.md"
    r"|(?:curvlab|plugins/\w+/curvlab_\w+|examples|docs/_ext|asv_benchmarks|\.ci)/.*\.py|noxfile\.py"
)


def tracked() -> list[Path]:
    """Every file of the tree, relative to it: committed, or new and not ignored."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.splitlines() if (ROOT / name).is_file()]


def misspelled(files: Sequence[Path]) -> list[str]:
    """What codespell finds under the settings in pyproject.toml, and by our dictionary beside its own."""
    command = [sys.executable, "-m", "codespell_lib", "-D", "-", "-D", str(DICTIONARY), *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = done.stdout.splitlines()
    if done.stderr or bool(done.returncode) != bool(found):
        raise RuntimeError(f"codespell failed: {done.stderr or done.returncode}")
    return found


def main(arguments: Sequence[str]) -> int:
    """Print every fault; 1 if there is any."""
    files = [Path(name) for name in arguments] or tracked()
    read = [file for file in files if arguments or READ.fullmatch(file.as_posix())]
    found = [*misspelled(files), *(fault for file in read for fault in faults_of(ROOT / file, file))]
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
