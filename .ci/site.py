"""Hooks of mkdocs: the pages of the reference, made from the code, and links to files of the repository.

mkdocs-gen-files and mkdocstrings do the like; mkdocs itself makes pages from text since 1.6, and the reference of ops
needs what only the registry of ops knows.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / ".ci"))

import reference  # noqa: E402

_OUTSIDE = re.compile(r"\]\(((?:\.\./)+)([\w./-]+)(#[\w-]+)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and every file of the repository that a page links to."""
    for name, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    linked = {p for page in (ROOT / "docs").rglob("*.md") for p in outside(page)}
    for path in sorted(linked):
        files.append(File.generated(config, f"files/{path}.txt", content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ to the copies beside the site, and links to README.md to the first page."""
    depth = page.file.src_uri.count("/")

    def moved(found: re.Match[str]) -> str:
        ups, path = found[1].count("../"), found[2]
        if ups <= depth:
            return found[0]
        home = "../" * depth
        return f"]({home}index.md)" if path == "README.md" else f"]({home}{target(path)})"

    return _OUTSIDE.sub(moved, markdown)


def outside(page: Path) -> list[str]:
    """Files of the repository, outside docs/, that a page links to."""
    depth = len(page.relative_to(ROOT / "docs").parts) - 1
    found = _OUTSIDE.findall(page.read_text(encoding="utf-8"))
    paths = [path for ups, path, _ in found if ups.count("../") > depth and path != "README.md"]
    return [name for path in paths for name in files_of(path)]


def files_of(path: str) -> list[str]:
    """A file, or all files in a folder."""
    place = ROOT / path
    return [path] if place.is_file() else sorted(str(p.relative_to(ROOT)) for p in place.iterdir() if p.is_file())


def target(path: str) -> str:
    """Where a file lies in the site; of a folder, its first file."""
    return f"files/{files_of(path)[0]}.txt"
