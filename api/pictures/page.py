"""One self-contained page with the graph of a model before and after every pass of a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..ir.files import write_file
from ..passes.pipelines import PIPELINES, decompose
from .history import history

if TYPE_CHECKING:
    from ..frontends.dsl import Model

_HERE = Path(__file__).parent
SCRIPTS = ("drawing.js", "controls.js")


def page(model: Model, pipeline: str = "decode", *, decomposed: bool = False, title: str = "") -> str:
    """The page as text: data, style and script in one file, which loads nothing from elsewhere.

    pipeline: one of `PIPELINES`. decomposed: take every layer apart before the passes run. title: by default the name
    of the graph.
    """
    graph = model.graph(encoded=True)
    if decomposed:
        graph = decompose(graph)
    found = history(graph, PIPELINES[pipeline]) | {"name": title or graph.name}
    data = json.dumps(found, separators=(",", ":"), ensure_ascii=True)
    for raw, safe in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        data = data.replace(raw, safe)
    html, css, *scripts = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", *SCRIPTS))
    filled = html.replace("/* style */", css).replace("/* script */", "\n".join(scripts))
    return filled.replace("/* data */", data)


def write_page(
    model: Model, path: str | Path, pipeline: str = "decode", *, decomposed: bool = False, title: str = ""
) -> Path:
    """Write the page to a file, whole or not at all; gives its path. See `page`."""
    path = Path(path)
    text = page(model, pipeline, decomposed=decomposed, title=title)
    write_file(path, text.encode())
    return path
