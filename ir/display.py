"""How objects show themselves: a small table as text, and as HTML in notebooks, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 96
"""Most columns of a line of text; what is longer ends in dots."""

_STYLE = (
    "border-collapse:collapse;font:13px/1.5 ui-sans-serif,system-ui,sans-serif;color:inherit;"
    "background:transparent;margin:.4em 0"
)
_CELL = "padding:2px 14px 2px 0;text-align:left;vertical-align:top;border:0;background:transparent;color:inherit"
_LINE = "border-bottom:1px solid rgba(128,128,128,.45)"
"""No colours of its own but a grey line: a table is read on the page's own ground, whatever that is."""


@dataclass(frozen=True)
class Table:
    """A title, and rows of cells; the first row names the columns if `headed`. note: a last line."""

    title: str
    rows: Sequence[Sequence[str]]
    headed: bool = False
    note: str = ""

    def text(self) -> str:
        """The title, and one line a row in columns; a cell of several lines goes on under itself."""
        count = max((len(row) for row in self.rows), default=0)
        columns = [[part for row in self.rows for part in _parts(row, i)] for i in range(count)]
        widths = [max(map(len, column), default=0) for column in columns[:-1]] + [0]
        lines = [self.title]
        for row in self.rows:
            cells = [_parts(row, i) for i in range(count)]
            for i in range(max(map(len, cells), default=0)):
                shown = "  ".join((c[i] if i < len(c) else "").ljust(w) for c, w in zip(cells, widths, strict=True))
                lines.append(_cut(f"  {shown}".rstrip()))
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])

    def html(self) -> str:
        """The same as one table, without scripts, files or colours of its own."""
        rows = [self._row(row, head=self.headed and i == 0) for i, row in enumerate(self.rows)]
        title = f'<caption style="{_CELL};font-weight:600;caption-side:top">{escape(self.title)}</caption>'
        note = f'<div style="opacity:.7;font-size:12px">{escape(self.note)}</div>' if self.note else ""
        return f'<div><table style="{_STYLE}">{title}<tbody>{"".join(rows)}</tbody></table>{note}</div>'

    def _row(self, row: Sequence[str], *, head: bool) -> str:
        cells: list[str] = []
        for i, cell in enumerate(row):
            named = head or (i == 0 and not self.headed)
            look = f"{_CELL};{_LINE if head else ''};font-weight:{600 if named else 400}"
            lines = "<br>".join(escape(line).replace("  ", "&nbsp; ") for line in cell.split("\n"))
            cells.append(f'<{"th" if named else "td"} style="{look}">{lines}</{"th" if named else "td"}>')
        return f"<tr>{''.join(cells)}</tr>"


class Shown:
    """An object that shows itself as a table: its `repr`, and what a notebook displays."""

    __slots__ = ()

    def table(self) -> Table:
        """What the object shows of itself, without reading weights or computing anything."""
        raise NotImplementedError(type(self).__name__)

    def __repr__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()


def _parts(row: Sequence[str], i: int) -> list[str]:
    return row[i].split("\n") if i < len(row) else []


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."


def wrapped(items: Sequence[str], width: int = 72) -> str:
    """Items joined by commas, in lines of about `width` columns."""
    lines = [""]
    for i, item in enumerate(items):
        word = item + (", " if i + 1 < len(items) else "")
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def size(count: float) -> str:
    """Bytes as people say them: `1.5 MB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(count, 1) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
