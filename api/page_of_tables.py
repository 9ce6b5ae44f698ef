"""One self-contained HTML page of headings and tables, light or dark."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def plain_page(title: str, parts: Iterable[str]) -> str:
    """The page; parts: HTML. Nothing is loaded from elsewhere."""
    body = "\n".join(parts)
    head = f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{_META}{head}</head><body>{body}</body></html>\n"


def table_of(head: Sequence[str], cells: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table. kind: "text" for columns of words, none for numbers behind a first column of words."""

    def line(values: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in values) + "</tr>"

    rows = f"{line(head, 'th')}{''.join(line(r, 'td') for r in cells)}"
    return f'<div class="{kind}"><table>{rows}</table></div>'


_META = (
    '<meta charset=utf-8><meta name=viewport content="width=device-width"><meta name=color-scheme content="light dark">'
)
_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "div{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #8886}"
    "td{white-space:nowrap}td:first-child,th:first-child{text-align:left}"
    "img{max-width:100%;background:#fff;border-radius:4px}"
    ".text td,.text th{text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere}"
    ".warning{color:#a33f55}@media(prefers-color-scheme:dark){.warning{color:#f0a0b0}}"
)
"""No colours of its own but those of warnings and lines; the picture keeps its white ground."""
