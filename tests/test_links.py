"""Links of README and docs: every file and every heading that one leads to is there, and every picture."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from pages import ROOT, pages

GENERATED = ("reference/ops.md", "reference/api.md", "reference/commands.md")
"""Pages that are made when the site is built."""


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        place = (page.parent / path).resolve() if path else page
        name = str(place.relative_to(ROOT / "docs")) if place.is_relative_to(ROOT / "docs") else ""
        if name in GENERATED:
            continue
        assert place.exists(), f"{page.relative_to(ROOT)}: {link} leads nowhere"
        if anchor:
            assert anchor in anchors(place), f"{page.relative_to(ROOT)}: {link}: {place.name} has {anchors(place)}"


def links(page: Path) -> list[str]:
    """Targets of links and pictures, in the order of the page."""
    found = list[str]()
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            target = child.attrs.get("href") or child.attrs.get("src")
            found += [str(target)] if target else []
    return found


def anchors(page: Path) -> set[str]:
    """Names of the headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = (re.sub(r"[^\w\s-]", "", title.lower()) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    return {re.sub(r"[\s]+", "-", title.strip()) for title in titles}


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    there = {str(p.relative_to(ROOT / "docs")) for p in pages() if p.name != "README.md"}
    assert named == there | set(GENERATED)


@pytest.mark.slow
def test_anchors_into_the_reference_are_there() -> None:
    sys.path.insert(0, str(ROOT / ".ci"))
    import reference  # pyright: ignore[reportMissingImports]

    made = reference.pages()
    assert {f"reference/{name}" for name in made} == set(GENERATED)
    for page in pages():
        for link in links(page):
            path, _, anchor = link.partition("#")
            if path.endswith(GENERATED) and anchor:
                text = made[Path(path).name]
                assert re.search(rf"^#+ {anchor}$", text, re.MULTILINE | re.IGNORECASE), f"{page.name}: {link}"
