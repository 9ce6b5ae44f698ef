"""Pages of documentation as programs: their code blocks, what they are to print, and what a test must know to run them.

A page is Markdown. Comments that no reader sees say what a test needs:

    <!-- setup ... -->              Python that makes the files that a page speaks of, with the names of PageTools
    <!-- run: this => that -->      what stands in the next block, and what is run in its place (one pair a line)
    <!-- not run: reason -->        the next block is checked, not run: commands parse, Python compiles

Blocks are run in order, in one folder and, for Python, in one module. A block with a title is a file of that name. A
`text` block is what the block before it prints; in a `console` block lines that begin with $ are commands, and the
others what they print.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
_COMMENT = re.compile(r"<!--\s*(setup|run:|not run:)(.*?)-->", re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
_UNIT = r"\s*(?:ms|s|min|m|h|kB|MB|GB|B|tokens/s|GFLOP/s|GB/s|%)\b"


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its first line of text in the page. skipped: why it is not run, if it is not."""

    page: Path
    line: int
    language: str
    text: str
    title: str = ""
    skipped: str = ""
    changes: tuple[tuple[str, str], ...] = ()

    @property
    def place(self) -> str:
        return f"{named(self.page)}:{self.line}"

    @property
    def code(self) -> str:
        """The text with what is run in place of parts of it. Raises ValueError for a part that is not there."""
        text = self.text
        for old, new in self.changes:
            if old not in text:
                raise ValueError(f"{self.place}: the block does not say {old!r}")
            text = text.replace(old, new)
        return text


def pages() -> list[Path]:
    """README.md and every page under docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def named(page: Path) -> str:
    """The path of a page from the root of the project."""
    return os.path.relpath(page, ROOT)


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, hidden ones included. Raises ValueError for an indented one: it has no language."""
    found, told = list[Block](), list[tuple[str, str]]()
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        line = (token.map or [0])[0] + 1
        if token.type == "code_block":
            raise ValueError(f"{named(page)}:{line}: fence this block and name its language")
        if token.type == "html_block":
            told += _COMMENT.findall(token.content)
            setups = [text for kind, text in told if kind == "setup"]
            told = [(kind, text) for kind, text in told if kind != "setup"]
            found += [Block(page, line + 1, "setup", text) for text in setups]
        elif token.type == "fence":
            found.append(_fence(page, line + 1, token, dict(told)))
        if token.type != "html_block":
            told = []
    return found


def _fence(page: Path, line: int, token: Token, told: dict[str, str]) -> Block:
    language, _, rest = token.info.partition(" ")
    title = _TITLE.search(rest)
    changes = [pair.partition(" => ") for pair in told.get("run:", "").strip().splitlines()]
    return Block(
        page,
        line,
        language,
        token.content,
        title[1] if title else "",
        " ".join(told.get("not run:", "").split()),
        tuple((old.strip(), new.strip()) for old, _, new in changes),
    )


@dataclass(frozen=True)
class Command:
    """A line of a shell, and what it is to print (None: anything)."""

    line: str
    expected: str | None = None


def commands(block: Block) -> list[Command]:
    """The commands of a `bash` block, or of a `console` block with what each prints."""
    text = block.code.replace("\\\n", " ")
    if block.language == "bash":
        return [Command(line) for line in map(without_comment, text.splitlines()) if line]
    found = list[Command]()
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Command(without_comment(line[2:])))
        elif not found:
            raise ValueError(f"{block.place}: output without a command")
        else:
            found[-1] = Command(found[-1].line, (found[-1].expected or "") + line + "\n")
    return found


def without_comment(line: str) -> str:
    """A line of a shell without what stands behind #."""
    return re.sub(r"(^|\s)#.*", "", line).strip()


def unlike(expected: str, printed: str) -> str | None:
    """Why a program did not print what a page says, or None.

    White space counts as one blank; `...` stands for anything. Whole numbers must be equal, others within a fifth (or
    both below 0.001); times, speeds, bytes and shares may be any.
    """
    wanted, pattern = list[tuple[str, bool]](), ""
    for part in re.split(rf"(\.\.\.|(?<![\w.]){_NUMBER}(?:{_UNIT})?(?![\w]))", expected.strip()):
        number = re.fullmatch(rf"({_NUMBER})({_UNIT})?", part)
        if part == "...":
            pattern += r"[\s\S]*?"
        elif number:
            wanted.append((number[1], bool(number[2])))
            pattern += rf"({_NUMBER})" + (_UNIT if number[2] else "")
        else:
            pattern += re.sub(r"(\\\s|\s)+", r"\\s+", re.escape(part))
    found = re.search(pattern + r"\s*$", printed)
    if found is None:
        return f"expected\n{expected}\nbut it printed\n{printed}"
    for (said, free), is_now in zip(wanted, found.groups(), strict=True):
        if not free and not _near(said, is_now):
            return f"the page says {said}, but it printed {is_now}\n{printed}"
    return None


def _near(said: str, is_now: str) -> bool:
    if not re.search(r"[.e]", said + is_now):
        return said == is_now
    a, b = (float(n.replace(",", "")) for n in (said, is_now))
    return abs(a - b) <= 0.2 * max(abs(a), abs(b)) or max(abs(a), abs(b)) < 1e-3
