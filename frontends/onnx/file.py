"""Open an ONNX file: parsed, checked, with functions inlined and no weight read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from ...ir.documents import open_regular
from ...ir.errors import unreadable
from ...ir.tensors import Tensor
from .attributes import check_attributes
from .errors import OnnxFileError
from .functions import inlined
from .initializers import place_of, read_initializer, read_sparse
from .nested import reads, subgraphs

MOST_BYTES = (1 << 31) - 1
"""Bytes of the largest message that protobuf reads; larger models keep their tensors in other files."""
MOST_NODES, MOST_DEPTH = 5_000_000, 24
Scopes = Sequence[Collection[str]]
"""Names that are known at a place, of each graph around it."""
OLDEST, NEWEST = 7, onnx.defs.onnx_opset_version()


@dataclass(frozen=True)
class OnnxFile:
    """A parsed model whose functions are inlined. tensors: the initializers of its main graph, unread. opsets: version
    by domain. opaque: its nodes are kept as one foreign node.
    """

    path: Path
    model: onnx.ModelProto
    tensors: Mapping[str, Tensor]
    opsets: Mapping[str, int]
    opaque: bool = False


def open_onnx(path: str | Path) -> OnnxFile:
    """Parse and check a file; tensors are read when asked for. Raises OnnxFileError naming file, place and numbers."""
    path = Path(path)
    try:
        with open_regular(path) as f:
            size = os.fstat(f.fileno()).st_size
            data = f.read(size) if size <= MOST_BYTES else b""
    except OSError as e:
        raise OnnxFileError(unreadable(e), place=str(path)) from None
    if size > MOST_BYTES:
        raise OnnxFileError(f"has {size} bytes; {MOST_BYTES} are the most of one message", place=str(path))
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as e:
        raise OnnxFileError(
            f"is not an ONNX model: its {len(data)} bytes do not parse ({e})", place=str(path)
        ) from None
    return checked(model, path)


def checked(model: onnx.ModelProto, path: Path) -> OnnxFile:
    """A model in memory as an OnnxFile. path: for messages, and of the folder in which external data lies."""
    _check_texts(model, path)
    if not model.HasField("graph"):
        raise OnnxFileError("has no graph", place=str(path))
    _check_functions(model, path)
    _check_size(model.graph, path)
    if model.functions:
        model = inlined(model, path)
        _check_size(model.graph, path)
    opsets = _opsets(model, path)
    check_attributes(_nodes(model.graph.node, path), path)
    check_graph(model.graph, path)
    tensors: dict[str, Tensor] = {}
    for t in model.graph.initializer:
        if t.data_type != onnx.TensorProto.STRING:
            tensors[t.name] = read_initializer(t, path)
    for s in model.graph.sparse_initializer:
        tensors[s.values.name] = read_sparse(s, path)
    return OnnxFile(path, model, tensors, opsets)


def _check_texts(message: Message, path: Path) -> None:
    """Every text is UTF-8: what is not comes out of protobuf as bytes, and would be a name that is none."""
    stack: list[Message] = [message]
    while stack:
        found = stack.pop()
        for field, value in found.ListFields():
            if field.type == field.TYPE_MESSAGE:
                stack += value if field.is_repeated else [value]
            elif field.type == field.TYPE_STRING:
                for text in value if field.is_repeated else [value]:
                    if isinstance(text, bytes):
                        raise OnnxFileError(f"has a {field.name} that is not UTF-8: {text[:40]!r}", place=str(path))


def _opsets(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if found.setdefault(domain, entry.version) != entry.version:
            what = f"imports {domain or 'ai.onnx'} at versions {found[domain]} and {entry.version}"
            raise OnnxFileError(what, place=str(path))
    version = found.get("", OLDEST if found else 0)
    if not OLDEST <= version <= NEWEST:
        raise OnnxFileError(f"is of opset {version}; {OLDEST} to {NEWEST} are known", place=str(path))
    return found


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    """No function calls itself, and inlined they are not too many nodes."""
    table = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    stack = [(key, False) for key in table]
    active: set[tuple[str, str, str]] = set()
    while stack:
        key, done = stack.pop()
        if key in sizes:
            continue
        nodes = list(_nodes(table[key].node, path))
        called = [k for n in nodes if (k := (n.domain, n.op_type, n.overload)) in table]
        if done:
            active.discard(key)
            sizes[key] = len(nodes) + sum(sizes[k] for k in called)
            if sizes[key] > MOST_NODES:
                what = f"function {key[1]} is {sizes[key]} nodes inlined; {MOST_NODES} are the most"
                raise OnnxFileError(what, place=str(path))
            continue
        active.add(key)
        stack.append((key, True))
        for k in called:
            if k in active:
                raise OnnxFileError(f"function {k[1]} calls itself through {key[1]}", place=str(path))
            if k not in sizes:
                stack.append((k, False))
    total = sum(1 + sizes.get((n.domain, n.op_type, n.overload), 0) for n in _nodes(model.graph.node, path))
    if total > MOST_NODES:
        raise OnnxFileError(f"has {total} nodes with its functions inlined; {MOST_NODES} are the most", place=str(path))


def _nodes(nodes: Iterable[onnx.NodeProto], path: Path) -> Iterator[onnx.NodeProto]:
    """All nodes of a list and of the subgraphs in it. Raises OnnxFileError where they are nested too deep."""
    stack = [(n, 0) for n in reversed(list(nodes))]
    while stack:
        node, depth = stack.pop()
        if depth > MOST_DEPTH:
            what = f"node {node.name or node.op_type} is nested {depth} graphs deep; {MOST_DEPTH} are the most"
            raise OnnxFileError(what, place=str(path))
        yield node
        for graph in subgraphs(node):
            stack += [(n, depth + 1) for n in graph.node]


def _check_size(graph: onnx.GraphProto, path: Path) -> None:
    count = sum(1 for _ in _nodes(graph.node, path))
    if count > MOST_NODES:
        raise OnnxFileError(f"has {count} nodes; {MOST_NODES} are the most", place=str(path))


def check_graph(graph: onnx.GraphProto, path: Path, outer: Scopes = ()) -> None:
    """Every name is made once and before it is read; subgraphs see what stands before their node.

    Nodes out of order are put in order. Raises OnnxFileError for a cycle, a name that nothing makes, and one that two
    do. outer: the names that the graphs around it know there.
    """
    known: set[str] = set()
    for name in (*(v.name for v in graph.input), *(t.name for t in graph.initializer)):
        if not name:
            raise OnnxFileError(f"graph {graph.name!r} has an input or an initializer without a name", place=str(path))
        known.add(name)
    for s in graph.sparse_initializer:
        known.add(s.values.name)
    _check_unique(graph, known, path)
    scopes = (*outer, known)
    _sort(graph, scopes, path)
    for node in graph.node:
        for inner in subgraphs(node):
            check_graph(inner, path, scopes)
        known.update(o for o in node.output if o)
    for v in graph.output:
        if not _has(scopes, v.name):
            raise OnnxFileError(f"output {v.name!r} of graph {graph.name!r} is made by no node", place=str(path))


def _has(scopes: Scopes, name: str) -> bool:
    return any(name in known for known in scopes)


def _check_unique(graph: onnx.GraphProto, known: set[str], path: Path) -> None:
    for kind, names in (
        ("input", [v.name for v in graph.input]),
        ("initializer", [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]),
        ("output", [v.name for v in graph.output]),
    ):
        if len(set(names)) < len(names):
            twice = next(n for n, count in Counter(names).items() if count > 1)
            raise OnnxFileError(f"has two {kind}s called {twice!r}", place=str(path))
    made: set[str] = set()
    for node in graph.node:
        if not any(node.output):
            raise OnnxFileError("has no outputs", place=place_of(path, node))
        for name in node.output:
            if name and (name in made or name in known):
                raise OnnxFileError(f"{name!r} is made twice", place=place_of(path, node))
            made.add(name)


def _sort(graph: onnx.GraphProto, scopes: Scopes, path: Path) -> None:
    """Put the nodes in an order in which each reads only what is there; no change where they are in one."""
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs: list[set[int]] = []
    for i, node in enumerate(graph.node):
        names = reads(node)
        lost = next((n for n in names if n not in made and not _has(scopes, n)), None)
        if lost is not None:
            raise OnnxFileError(f"reads {lost!r}, which nothing makes", place=place_of(path, node))
        needs.append({made[n] for n in names if n in made and not _has(scopes, n)})
        if i in needs[i]:
            raise OnnxFileError("reads what it makes: a cycle of 1 node", place=place_of(path, node))
    if all(j < i for i, before in enumerate(needs) for j in before):
        return
    readers: dict[int, list[int]] = {}
    for i, before in enumerate(needs):
        for j in before:
            readers.setdefault(j, []).append(i)
    waiting = [len(before) for before in needs]
    ready = [i for i, n in enumerate(waiting) if n == 0]
    order: list[int] = []
    for i in ready:
        order.append(i)
        for k in readers.get(i, ()):
            waiting[k] -= 1
            if waiting[k] == 0:
                ready.append(k)
    if len(order) < len(waiting):
        first = next(i for i, n in enumerate(waiting) if n)
        what = f"is in or behind a cycle of nodes ({len(waiting) - len(order)} of {len(waiting)} wait for each other)"
        raise OnnxFileError(what, place=place_of(path, graph.node[first]))
    nodes = [graph.node[i] for i in order]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(copies)
