"""Graphs inside the nodes of a graph: their nodes, and the names that they take from around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs among the attributes of a node."""
    own = [a.g for a in node.attribute if a.HasField("g")]
    return own + [g for a in node.attribute for g in a.graphs]


def every_node(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph or a function, each before those of the graphs inside it."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from every_node(inner)


def reads(node: onnx.NodeProto) -> list[str]:
    """Names that a node reads: its inputs, and what its subgraphs take from outside them."""
    found = [n for n in node.input if n]
    for graph in subgraphs(node):
        own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        own |= {s.values.name for s in graph.sparse_initializer}
        for inner in graph.node:
            found += [n for n in reads(inner) if n not in own]
            own.update(inner.output)
        found += [v.name for v in graph.output if v.name not in own]
    return list(dict.fromkeys(found))


def free(graph: onnx.GraphProto) -> list[str]:
    """Names that a graph inside a node takes from outside it."""
    return reads(onnx.NodeProto(attribute=[onnx.helper.make_attribute("body", graph)]))


SHOWING = {"Conv", "ConvInteger", "MaxPool", "AveragePool"}
"""Operators whose results show sizes that others compute."""


def shown_first(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes in an order in which those that show sizes come as early as what they read allows."""
    at = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    order: dict[int, None] = {}
    for i, node in enumerate(nodes):
        wanted, waiting = set[int](), [i] if node.op_type in SHOWING else []
        while waiting:
            j = waiting.pop()
            if j not in order and j not in wanted:
                wanted.add(j)
                waiting += [at[n] for n in reads(nodes[j]) if n in at]
        order |= dict.fromkeys(sorted(wanted))
    return [nodes[i] for i in dict.fromkeys([*order, *range(len(nodes))])]


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give what a subgraph reads from outside it other names."""
    own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    own |= {s.values.name for s in graph.sparse_initializer} | {o for n in graph.node for o in n.output}
    free = {k: v for k, v in names.items() if k not in own}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = free.get(name, name)
        for inner in subgraphs(node):
            rename(inner, free)
    for v in graph.output:
        v.name = free.get(v.name, v.name)
