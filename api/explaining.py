"""What was raised and fused in an ONNX file, layer by layer, and what was not, with its first obstacle."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .branches import kept_of
from .frontends.onnx.errors import UntypedError
from .frontends.onnx.file import open_onnx
from .frontends.onnx.load import read_graph
from .ir.value import Location
from .optimizing import file_of, softmaxes, why_untyped
from .page_of_tables import plain_page, table_of
from .passes.raising.report import Left
from .raised import Raised, raised_model

_LAYER = re.compile(r"^(.*?(?:^|[./_])\d+)[./]")
"""The part of a node's name up to the number of its layer."""


@dataclass
class LayerReport:
    """raised: composites by op. fused: attentions by the op of the runtime that computes them. left: see Left."""

    name: str
    raised: Counter[str] = field(default_factory=Counter[str])
    fused: Counter[str] = field(default_factory=Counter[str])
    left: list[Left] = field(default_factory=list[Left])


@dataclass
class Explanation:
    """Of one file. layers: in the order of the graph; "" is outside all layers. foreign: nodes that the IR does not
    know, with the reason. misses: what was almost fused."""

    name: str
    layers: list[LayerReport]
    foreign: dict[str, str]
    misses: list[str]

    @property
    def left(self) -> list[Left]:
        """Every softmax that is no attention, and every root of a mean of squares that is no norm."""
        return [x for layer in self.layers for x in layer.left]

    @property
    def attentions(self) -> int:
        return sum(layer.raised["attention"] for layer in self.layers)

    @property
    def summary(self) -> str:
        """One line for people."""
        fused = sum(layer.fused.total() for layer in self.layers)
        over = f"; {len(self.left) - self.softmax_left} norms" if len(self.left) > self.softmax_left else ""
        raised = f"{self.attentions} attention{'s' if self.attentions != 1 else ''} raised, {fused} of them one op"
        return f"{raised}; {self.softmax_left} softmax left over{over}"

    @property
    def softmax_left(self) -> int:
        return sum(x.what == "softmax" for x in self.left)

    @property
    def rows(self) -> list[dict[str, str]]:
        """The layers as rows of a table."""
        return [
            {
                "layer": layer.name or "outside",
                "raised": _counted(layer.raised),
                "fused": _counted(layer.fused),
                "not raised": "; ".join(f"{x.reason} ({x.node})" for x in layer.left),
            }
            for layer in self.layers
        ]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain dictionaries and lists."""
        layers = [
            {
                "layer": layer.name,
                "raised": dict(layer.raised),
                "fused": dict(layer.fused),
                "left": [
                    {"what": x.what, "place": str(x.location), "node": x.node, "reason": x.reason} for x in layer.left
                ],
            }
            for layer in self.layers
        ]
        counts = {"attention": self.attentions, "softmax_left": self.softmax_left}
        return {"name": self.name, **counts, "layers": layers, "foreign": self.foreign, "misses": self.misses}


def explain(file: str | Path) -> Explanation:
    """What becomes of an ONNX file, or of the one in a folder. Nothing is run and nothing written.

    Raises OnnxFileError for a file that is damaged, and MonographError for a graph that has no ONNX form.
    """
    source = file_of(Path(file))
    read = open_onnx(source)
    try:
        graph, weights, foreign = read_graph(read, kept_of(read), wrap=False)
    except UntypedError as e:
        alone = LayerReport("", left=softmaxes(read, why_untyped(e, read)))
        return Explanation(str(source), [alone] * bool(alone.left), {"graph": why_untyped(e, read)}, [])
    found = raised_model(graph, weights, opset=read.opsets.get("", 0))
    return Explanation(str(source), _layers(found), dict(foreign), [str(m) for m in found.misses])


def _layers(found: Raised) -> list[LayerReport]:
    layers: dict[str, LayerReport] = {}

    def at(location: Location) -> LayerReport:
        name = layer_of(location)
        return layers.setdefault(name, LayerReport(name))

    for node in found.graph:
        at(node.location)
    for raised in found.report.raised:
        at(raised.location).raised[raised.op] += 1
    for node in found.fused:
        at(node.location).fused[node.op.name] += 1
    for left in found.left:
        at(left.location).left.append(left)
    return [x for x in layers.values() if x.raised or x.fused or x.left]


def layer_of(location: Location) -> str:
    """The layer that a node belongs to by its name; "" for one outside all layers."""
    found = _LAYER.match(location.scope)
    return found[1].strip("/.").replace("/", ".") if found else ""


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {op}" for op, n in counts.most_common())


def explanation_page(found: Iterable[Explanation]) -> str:
    """One self-contained page about files."""
    parts: list[str] = []
    for one in found:
        parts += [f"<h1>{html.escape(one.name)}</h1>", f"<p>{html.escape(one.summary)}</p>"]
        parts.append(table_of(["layer", "raised", "fused", "not raised"], [list(r.values()) for r in one.rows], "text"))
        if one.foreign:
            parts += ["<h2>Operators kept as they are</h2>", table_of(["node", "reason"], one.foreign.items(), "text")]
        if one.misses:
            parts += ["<h2>Almost fused</h2>", table_of(["miss"], [[m] for m in one.misses], "text")]
    return plain_page("explained", parts)
