"""A benchmark as pictures: bars with their spread, a roofline, and one page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .ir.display import size
from .ir.files import staged
from .ir.missing import needed
from .performance import Benchmark, Speed, share
from .profiling import Layer

_COLOURS = ("#2f6f9f", "#c8662b", "#4f8a4c", "#8a5aa8", "#a33f55", "#6b6b6b")
_LAYERS = 12


def png(found: Benchmark) -> bytes:
    """Bars of prompts and steps a second, and a roofline. Raises MissingPackageError without matplotlib."""
    with needed("a plot of a benchmark"):
        from matplotlib.figure import Figure
    decodes = found.new_tokens > 0
    line = any(r.intensity[0] for r in found.rows)
    count = 1 + decodes + line
    figure: Any = Figure(figsize=(5.2 * count, 3.6), layout="constrained")  # its annotations have open parts
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    _bars(axes.pop(0), found.rows, "prefill", f"{found.unit} of prompts a second" if decodes else f"{found.unit}/s")
    if decodes:
        _bars(axes.pop(0), found.rows, "decode", "tokens decoded a second")
    if line:
        _roofline(axes.pop(0), found)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _bars(axis: Any, rows: Sequence[Speed], kind: str, title: str) -> None:
    values = [getattr(r, kind) for r in rows]
    spreads = [getattr(r, kind) * getattr(r, f"{kind}_spread") for r in rows]
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(rows))]
    places = range(len(rows))
    axis.barh(places, values, xerr=spreads, color=colours, height=0.6, capsize=3, ecolor="#444444")
    axis.set_yticks(places, [r.variant for r in rows])
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    most = max((v + s for v, s in zip(values, spreads, strict=True)), default=1.0)
    axis.set_xlim(0, most * 1.22)
    for place, value, spread in zip(places, values, spreads, strict=True):
        axis.text(value + spread + most * 0.02, place, f"{value:,.1f}", va="center", fontsize=9)


def _roofline(axis: Any, found: Benchmark) -> None:
    """What was reached against what bandwidth and arithmetic allow at each intensity. (Williams et al. 2009)"""
    limits = found.ceilings
    points: list[tuple[float, float, str, str, str]] = []
    for i, row in enumerate(found.rows):
        colour = _COLOURS[i % len(_COLOURS)]
        for kind, marker, intensity, reached in (
            ("prompts", "o", row.intensity[0], row.prefill_share * limits.flops),
            ("steps", "s", row.intensity[1], row.decode_share * limits.bandwidth * row.intensity[1]),
        ):
            if intensity and reached:
                points.append((intensity, reached / 1e9, colour, marker, f"{row.variant}, {kind}"))
    ridge = limits.flops / limits.bandwidth
    least, most = min(*(p[0] for p in points), ridge) / 3, max(*(p[0] for p in points), ridge) * 3
    edge = [least, ridge, most]
    axis.plot(edge, [min(x * limits.bandwidth, limits.flops) / 1e9 for x in edge], color="#222222", linewidth=1.5)
    for x, y, colour, marker, label in points:
        axis.plot(x, y, marker, color=colour, label=label, markersize=7)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("float operations a byte")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(f"roofline: {limits.bandwidth / 1e9:.1f} GB/s, {limits.flops / 1e9:,.0f} GFLOP/s", fontsize=10)
    axis.legend(fontsize=7, frameon=False, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)


def page(found: Benchmark, name: str) -> str:
    """One self-contained page: the table, the picture, and where the time of each subject goes."""
    picture = base64.b64encode(png(found)).decode()
    parts = [
        f"<h1>{html.escape(name)}</h1><p>{html.escape(found.table().title)}</p>",
        _table(["", "nodes", f"{found.unit}/s", "of peak", "decoded/s", "of peak", "memory"], map(_cells, found.rows)),
        f'<img alt="bars and roofline" src="data:image/png;base64,{picture}">',
        *(f"<p class=warning>{html.escape(w)}</p>" for w in found.warnings),
        *(_layers(r.variant, r.layers) for r in found.rows if r.layers),
    ]
    body = "\n".join(parts)
    head = f"<meta charset=utf-8><title>{html.escape(name)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def _cells(row: Speed) -> list[str]:
    decode = [f"{row.decode:,.1f} ±{row.decode_spread:.0%}", share(row.decode_share)] if row.decode else ["", ""]
    prefill = [f"{row.prefill:,.1f} ±{row.prefill_spread:.0%}", share(row.prefill_share)]
    return [row.variant, f"{row.nodes:,}", *prefill, *decode, size(row.peak)]


def _layers(variant: str, layers: Sequence[Layer]) -> str:
    rows = [
        [x.scope or "none", x.op, f"{x.count:,}", f"{x.milliseconds:,.1f}", f"{x.share:.1%}"] for x in layers[:_LAYERS]
    ]
    title = f"<h2>{html.escape(variant)}: where the time goes</h2>"
    return title + _table(["layer", "op", "kernels", "ms", "share"], rows)


def _table(head: Sequence[str], rows: Any) -> str:
    def line(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(c)}</{kind}>" for c in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(r, 'td') for r in rows)}</table>"


def write(content: bytes, file: Path) -> None:
    """Write a picture or a page whole or not at all. Raises WriteError."""
    with staged(file.parent) as stage, stage.open(file.name) as f:
        f.write(content)


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}.warning{color:#a33f55}"
)
