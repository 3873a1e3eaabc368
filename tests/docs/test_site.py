"""The site builds without a warning, every link in it resolves, and a page loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from curvlab.registry.kinds import PROTOCOLS
from curvlab.registry.loader import installed

pytest.importorskip("sphinx", reason="the site's tools ask for Python 3.11")
pytest.importorskip("myst_parser", reason="the site's tools ask for Python 3.11")

DOCS = Path(__file__).resolve().parents[2] / "docs"

#: what a method's page has, in this order
SECTIONS = ["Equation", "Configuration", "Symbols", "Limits", "Reference"]


@dataclass
class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors in it."""

    text: str
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(v for k, v in given.items() if k in ("id", "name"))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loads.append(given.get("href", ""))
        elif "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(built / "cache"), str(DOCS), str(built / "html")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return built / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {p: Page(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html"))}


def local(page: Path, link: str) -> Path:
    """The file that a link within the site means."""
    path = unquote(urlparse(link).path)
    return (page.parent / path).resolve() if path else page


def test_every_link_within_the_site_resolves(pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        for link in page.links:
            if urlparse(link).scheme in ("http", "https", "mailto"):
                continue
            target, anchor = local(file, link), urldefrag(link).fragment
            if not target.exists() or (anchor and anchor not in pages[target].anchors):
                broken.append(f"{file.name}: {link}")
    assert not broken


def test_a_page_loads_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        for load in page.loads:
            parsed = urlparse(load)
            assert not parsed.netloc, f"{file.name} loads {load}"
            assert parsed.scheme == "data" or local(file, load).exists(), f"{file.name} misses {load}"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert "@import" not in text, sheet.name
        for url in re.findall(r"url\(['\"]?(.+?)['\"]?\)", text):
            assert url.startswith(("data:", "#")) or local(sheet, url).exists(), f"{sheet.name}: {url}"


def test_formulas_are_mathml_and_none_is_left_as_text(pages: dict[Path, Page]) -> None:
    shown = {p.stem: page.text for p, page in pages.items() if p.parent.name in ("methods", "concepts")}
    assert shown["kfac"].count("<math ") > 10
    for name, text in shown.items():
        prose = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.search(r"\$|\\[a-z]{3,}", prose), name


def test_no_line_is_left_that_stands_for_something(pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        assert "from code:" not in re.sub(r"<code.*?</code>", "", page.text), file.name


def test_every_method_has_a_page_of_five_sections(site: Path, pages: dict[Path, Page]) -> None:
    for name in own_methods():
        text = pages[site / "methods" / f"{name}.html"].text
        found = re.findall(r"<h2>(\w+)<", text)
        assert [f for f in found if f in SECTIONS] == SECTIONS, name


def test_every_kind_has_a_page_of_all_its_parts(site: Path, pages: dict[Path, Page]) -> None:
    for kind in PROTOCOLS:
        anchors = pages[site / "reference" / f"{kind}.html"].anchors
        assert {e.name for e in own_parts(kind)} <= anchors, kind


def own_methods() -> Iterator[str]:
    """First-party methods."""
    import listings

    return (e.name for e in installed().method_entries() if listings.OURS.fullmatch(e.distribution))


def own_parts(kind: str) -> Iterator[object]:
    """First-party parts of a kind."""
    import listings

    return (e for e in installed().parts(kind) if listings.OURS.fullmatch(e.distribution))
