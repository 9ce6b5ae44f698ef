"""A benchmark for people: its table, a picture with bars and a roofline, and one page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from .ir.display import size
from .ir.errors import ConfigError
from .ir.missing import needed
from .machine import cpu_name
from .page_of_tables import plain_page, table_of
from .performance import Benchmark, Speed, share
from .profiling import Layer

_COLOURS = (
    "#2f6f9f",
    "#c8662b",
    "#4f8a4c",
    "#8a5aa8",
    "#a33f55",
    "#6b6b6b",
    "#b89a1e",
    "#3f9c9c",
    "#d47fb0",
    "#7a5230",
)
_LAYERS, _NAME, _FEW = 12, 24, 2
"""Most rows of a profile; most characters of a name in one line of a picture; bars that there is always room for."""


# -- the table -----------------------------------------------------------------------------------------------------


def rows(found: Benchmark) -> list[dict[str, Any]]:
    """Tokens per second with their spread, shares of the limits of the machine, and times the first row."""
    first = found.rows[0]
    return [
        {
            "graph": r.variant,
            "nodes": r.nodes,
            f"{'prefill' if found.new_tokens else 'one call'} ({found.unit}/s)": _spread(r.prefill, r.prefill_spread),
            "of fp32 limit": share(r.prefill_share),
            **_decode(found, r),
            "times the first": r.decode / first.decode if found.new_tokens else r.prefill / first.prefill,
            "memory": size(r.peak),
        }
        for r in found.rows
    ]


def _spread(value: float, spread: float) -> str:
    return f"{value:,.1f} ±{spread:.0%}"


def _decode(found: Benchmark, row: Speed) -> dict[str, Any]:
    if not found.new_tokens:
        return {}
    return {"decode (tokens/s)": _spread(row.decode, row.decode_spread), "of bandwidth": share(row.decode_share)}


def limits(found: Benchmark) -> str:
    """Two sentences: the load, and the limits of the machine."""
    c = found.ceilings
    said = f"{c.bandwidth / 1e9:.1f} GB/s read, {c.flops / 1e9:.0f} GFLOP/s fp32"
    return f"{_load(found)}, ± half the range. Limits: {said}."


def _load(found: Benchmark) -> str:
    said = (
        f"{found.prompt} prompt tokens, {found.new_tokens} new ones" if found.new_tokens else f"{found.prompt} tokens"
    )
    if found.unit != "tokens":
        said = f"calls of {_counted(found.batch, 'row')}"
    elif found.batch > 1:
        said = f"{said} in each of {found.batch} rows"
    return f"{said}, {_counted(found.ceilings.threads, 'thread')}, median of {_counted(found.rounds, 'round')}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# -- the picture ---------------------------------------------------------------------------------------------------


def check_drawing(*files: Path) -> None:
    """Raises MissingPackageError without matplotlib, and ConfigError if one of the files to write is a folder."""
    for file in files:
        if file.is_dir():
            raise ConfigError("is a folder, expected the name of a file to write", place=str(file))
    with needed("a plot of a benchmark"):
        import_module("matplotlib.figure")


def png(found: Benchmark) -> bytes:
    """Bars, and a roofline where the work is known. Raises MissingPackageError without matplotlib."""
    with needed("a plot of a benchmark"):
        from matplotlib.figure import Figure
    decodes = found.new_tokens > 0
    line = any(r.intensity[0] and r.prefill_share for r in found.rows)
    count, height = 1 + decodes + line, max(3.8, 1.6 + 0.5 * len(found.rows))
    figure: Any = Figure(
        figsize=(max(5.4 * count, 7.5), height), layout="constrained"
    )  # its annotations have open parts
    figure.suptitle(_load(found), fontsize=11)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    names = axes[0]
    _bars(axes.pop(0), found, "prefill", "prefill" if decodes else "one call")
    names.set_yticks(range(len(found.rows)), [_wrapped(r.variant) for r in found.rows])
    if decodes:
        _bars(axes.pop(0), found, "decode", "decode")
    if line:
        _roofline(axes.pop(0), found)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _wrapped(name: str) -> str:
    """A name in lines that leave room for its bar; signs that matplotlib reads as formulas are text."""
    return "\n".join(textwrap.wrap(name, _NAME, max_lines=3, placeholder="...")).replace("$", r"\$")


def _bars(axis: Any, found: Benchmark, kind: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    values = [getattr(r, kind) for r in found.rows]
    spreads = [getattr(r, kind) * getattr(r, f"{kind}_spread") for r in found.rows]
    places = range(len(values))
    colours = [_colour(i) for i in places]
    axis.barh(places, values, xerr=spreads, color=colours, height=0.6, capsize=3, ecolor="#444444")
    axis.set_yticks(places, [""] * len(values))
    axis.set_ylim(max(len(values), _FEW) - 0.5, -0.5)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(f"{found.unit if kind == 'prefill' else 'tokens'}/s, ± half the range of the rounds", fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.spines[["top", "right"]].set_visible(False)
    most = max((v + s for v, s in zip(values, spreads, strict=True)), default=1.0)
    axis.set_xlim(0, most * 1.25)
    for place, value, spread in zip(places, values, spreads, strict=True):
        axis.text(value + spread + most * 0.02, place, f"{value:,.1f}", va="center", fontsize=9)


def _colour(row: int) -> str:
    return _COLOURS[row % len(_COLOURS)]


def _roofline(axis: Any, found: Benchmark) -> None:
    """What was reached against what bandwidth and arithmetic allow at each intensity. (Williams et al. 2009)

    Colours are those of the bars; the legend stands above the roof, where no point can be.
    """
    limit = found.ceilings
    points: list[tuple[float, float]] = []
    for kind, marker in (("prefill" if found.new_tokens else "one call", "o"), ("decode", "s")):
        reached = [(i, *_reached(found, row, kind)) for i, row in enumerate(found.rows)]
        drawn = [(i, x, y) for i, x, y in reached if x and y]
        for i, x, y in drawn:
            axis.plot(x, y, marker, color=_colour(i), markeredgecolor="white", markersize=9, zorder=3)
        if drawn:
            axis.plot([], [], marker, color="#444444", label=kind)
        points += [(x, y) for _, x, y in drawn]
    ridge = limit.flops / limit.bandwidth
    edge = [min(*(x for x, _ in points), ridge) / 3, ridge, max(*(x for x, _ in points), ridge) * 3]
    roof = [min(x * limit.bandwidth, limit.flops) / 1e9 for x in edge]
    axis.plot(edge, roof, color="#222222", linewidth=1.5, label="limit of this machine")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(min(roof[0], *(y for _, y in points)) / 1.5, roof[1] * 3)
    _plain_numbers(axis)
    axis.set_xlabel("float operations per byte read", fontsize=9)
    axis.set_ylabel("GFLOP/s", fontsize=9)
    axis.set_title(f"roofline: {limit.bandwidth / 1e9:.1f} GB/s, {limit.flops / 1e9:,.0f} GFLOP/s", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="upper center", ncols=3, columnspacing=1.2, handletextpad=0.4)
    axis.spines[["top", "right"]].set_visible(False)


def _reached(found: Benchmark, row: Speed, kind: str) -> tuple[float, float]:
    """(float operations per byte, GFLOP/s); zeros where they are not known."""
    if kind == "decode":
        return row.intensity[1], row.decode_share * found.ceilings.bandwidth * row.intensity[1] / 1e9
    return row.intensity[0], row.prefill_share * found.ceilings.flops / 1e9


def _plain_numbers(axis: Any) -> None:
    """Numbers of a logarithmic scale as 0.5, 20 and 1,000, on axes of one decade, too."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    for scale, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        scale.set_minor_locator(NullLocator())
        scale.set_major_formatter(StrMethodFormatter("{x:,g}"))


# -- the page ------------------------------------------------------------------------------------------------------


def page(found: Benchmark, name: str) -> str:
    """One self-contained page, light or dark: the table, the picture, and where the time of each subject goes."""
    picture = base64.b64encode(png(found)).decode()
    table = [{k: f"{v:.2f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows(found)]
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p>{html.escape(limits(found))} Measured on {html.escape(cpu_name())}.</p>",
        table_of(list(table[0]), [list(row.values()) for row in table]),
        *(f"<p class=warning>{html.escape(w)}</p>" for w in found.warnings),
        f'<img alt="bars and a roofline of the table above" src="data:image/png;base64,{picture}">',
        *(_layers(r.variant, r.layers) for r in found.rows if r.layers),
    ]
    return plain_page(f"{name}: benchmark", parts)


def _layers(variant: str, layers: Sequence[Layer]) -> str:
    cells = [
        [x.scope or "none", x.op, f"{x.count:,}", f"{x.milliseconds:,.1f}", f"{x.share:.1%}"] for x in layers[:_LAYERS]
    ]
    title = f"<h2>{html.escape(variant)}: where the time goes</h2>"
    return title + table_of(["layer", "op", "calls", "ms", "share"], cells)
