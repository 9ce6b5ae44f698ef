"""Attention by meaning: what a softmax between two products computes, whatever its layout, mask and scale look like."""

from __future__ import annotations

import numpy as np

from ...ir import ops
from ...ir.errors import MonographError
from ...ir.graph import Graph, Node, Value
from ...ir.interpret import Array, evaluate
from ...ir.ops.attention import Attention
from ..decompose import inline_body
from ..manager import RewritePass
from ..pattern import Fuse
from .check import Check, Run
from .empty_rows import means_where_empty
from .guards import drop_guard
from .masks import Masks
from .matcher import Matcher
from .report import Left, Raised, RaisingReport
from .scores import Obstacle, Way, is_softmax, ways
from .unread import erase_unread
from .views import Unaligned


def raise_attention(graph: Graph, masks: Masks, check: Check, report: RaisingReport, *, every_row: bool = False) -> int:
    """Replace every attention by the op; each softmax that stays is in the report. Gives how many were raised.

    Rows without a key to attend to are zeros afterwards, whatever they were: they are not compared. every_row: they
    are, and get the mean of all values where softmax gives that; attention in which they are other numbers stays.
    """
    raised = 0
    for node in [n for n in graph if is_softmax(n)]:
        if node.order < 0:
            continue
        try:
            made = _raise_one(graph, node, masks, check, report, every_row=every_row)
        except Obstacle as e:
            report.left.append(Left.at("softmax", node, e.node, e.reason))
            continue
        raised += 1
        report.raised.append(Raised("attention", node.location, described(made)))
    return raised


def take_apart(graph: Graph) -> int:
    """Inline attention that a file has as one op, so that its mask is read like any other. Gives how many."""
    found = [n for n in graph if isinstance(n.op, Attention)]
    for node in found:
        inline_body(graph, node)
    return len(found)


def put_back(graph: Graph, report: RaisingReport) -> None:
    """Attention that was taken apart and not raised becomes the op that it was."""
    RewritePass("put_back", [Fuse(ops.attention)]).run(graph)
    left = {n.location for n in graph if is_softmax(n)}
    report.left = [x for x in report.left if x.location in left]


def described(node: Node) -> str:
    """The options of an attention, for people."""
    q, k = node.value("q"), node.value("k")
    words = [f"{q.shape[2]} heads" if q.shape[2] == k.shape[2] else f"{q.shape[2]} heads over {k.shape[2]}"]
    words += ["causal"] * node.attributes["causal"]
    words += [f"{key} {node.attributes[key]:g}" for key in ("window", "softcap") if node.attributes[key] is not None]
    words += [name for name in ("bias", "mask", "lengths", "sinks") if node[name] is not None]
    return ", ".join(words)


def _raise_one(
    graph: Graph, softmax: Node, masks: Masks, check: Check, report: RaisingReport, *, every_row: bool
) -> Node:
    first: Obstacle | None = None
    for way in ways(graph, softmax):
        try:
            return _along(graph, way, masks, check, report, every_row=every_row)
        except Obstacle as e:
            first = first or e
        except Unaligned:
            first = first or Obstacle("its axes do not factor into batch, heads, queries and keys", way.product)
        except MonographError as e:
            first = first or Obstacle(e.what, way.product)
    assert first is not None
    raise first


def _along(graph: Graph, way: Way, masks: Masks, check: Check, report: RaisingReport, *, every_row: bool) -> Node:
    with graph.at(way.values):
        matched = Matcher(way, masks)
        attention = matched.attention()
        new = matched.output(attention)
    node = attention.producer
    old = way.values.output
    assert node is not None
    if new.type != old.type:
        raise Obstacle(f"the result would be {new.type}, not {old.type}", way.values)
    cuts = {matched.q.source, matched.k.source, matched.v.source, *matched.terms.sides}
    allowed = {way.product, way.values, node}

    def alive(run: Run) -> dict[Value, Array]:
        return {attention: _alive(node, run)}

    wrong = check.difference(old, new, cuts, allowed, alive)
    if wrong:
        erase_unread(graph, new)
        report.undone.append(Left.at("attention", way.softmax, way.values, wrong))
        raise Obstacle(f"attention would change a number: {wrong}", way.softmax)
    lost = check.difference(old, new, cuts, allowed, numbers=True) if every_row else None
    graph.replace(old, new)
    if not drop_guard(graph, node, matched.parts, masks, check) and lost:
        graph.replace(new, old)
        with graph.at(way.values):
            filled = means_where_empty(node)
            whole = new if filled is None else matched.output(filled)
        if check.difference(old, whole, cuts, allowed, numbers=True):
            for made in (whole, new):
                erase_unread(graph, made)
            raise Obstacle(f"rows without a key to attend to would be zeros: {lost}", way.softmax)
        graph.replace(old, whole)
        erase_unread(graph, new)
    erase_unread(graph, old)
    return node


def _alive(node: Node, run: Run) -> Array:
    """1 where a query has a key to attend to, else 0, in the shape of the output of an attention."""
    names = ("q", "k", "v", "mask", "lengths")
    q, k, v, mask, lengths = (None if node[n] is None else run(node.value(n)) for n in names)
    assert q is not None and k is not None and v is not None
    attributes = {**node.attributes, "scale": 1.0, "softcap": None}
    operands: list[Array | None] = [q * 0, k * 0, np.ones_like(v), None, mask, lengths, None]
    return evaluate(node.op, operands, attributes, run.dims)[0]
