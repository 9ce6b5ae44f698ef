"""Foreign nodes of a graph as ONNX nodes: as they were read, at the version that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir
from onnx import version_converter

from ...frontends.onnx.foreign import node_of, single
from ...frontends.onnx.nested import every_node, reads, rename, subgraphs
from ...ir.errors import LoweringError
from ...ir.types import TensorType

if TYPE_CHECKING:
    from .builder import Builder, Handle


def add_foreign(op: Builder, xs: Sequence[Handle | None], attributes: Mapping[str, Any]) -> tuple[Handle, ...]:
    """Write one foreign node. Raises LoweringError for one that the opset does not have in this form."""
    given = [x for x in xs if x is not None]
    captures: tuple[str, ...] = attributes["captures"]
    count = len(given) - len(captures)
    types = [TensorType(dtype, shape) for dtype, shape in attributes["types"]]
    outputs = [op.unique(f"{attributes['name']}_output") for _ in types]
    nodes = [node_of(attributes, [f"x{i}" for i in range(count)], outputs)]
    if not attributes["domain"] and not _same(attributes["name"], attributes["version"], op.opset, nodes[0]):
        nodes = _converted(op, attributes, [h.type for h in given], outputs)
    else:
        op.versions[attributes["domain"]] = attributes["version"]
    names = dict(zip([*(f"x{i}" for i in range(count)), *captures], given, strict=True))
    for node in nodes:
        names |= _placed(op, node, names)
    results = tuple(names[name] for name in outputs)
    for handle, type in zip(results, types, strict=True):
        handle.stamp(type)
    return results


def _placed(op: Builder, node: onnx.NodeProto, known: Mapping[str, Handle]) -> dict[str, Handle]:
    """Write a node, or the nodes of its branch if it is an If whose condition is stored; gives its results by name.

    ONNX Runtime inlines such an If as well, and 1.31 crashes on a few of them inside one another.
    """
    branch = _taken(node, known)
    if branch is None:
        return op.placed(node, known)
    names = {o: op.unique(o) for n in branch.node for o in n.output if o}
    inner = {k: v for k, v in known.items() if k not in names}
    for made in (*_holders(branch), *branch.node):
        copy = onnx.NodeProto.FromString(made.SerializeToString())
        copy.output[:] = [names.get(o, o) for o in made.output]
        found = _placed(op, copy, inner)
        inner |= {o: found[c] for o, c in zip(made.output, copy.output, strict=True) if o}
    return {o: inner[v.name] for o, v in zip(node.output, branch.output, strict=True) if o}


def _taken(node: onnx.NodeProto, known: Mapping[str, Handle]) -> onnx.GraphProto | None:
    """The branch of an If whose condition is an initializer."""
    if node.op_type != "If" or node.domain not in ("", "ai.onnx"):
        return None
    stored = known[node.input[0]].value.const_value
    if stored is None or stored.size != 1:
        return None
    name = "then_branch" if bool(stored.numpy().reshape(())) else "else_branch"
    return next(a.g for a in node.attribute if a.name == name)


def _holders(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The initializers of a graph as nodes."""
    make = onnx.helper.make_node
    return [
        *(make("Constant", [], [t.name], value=t) for t in graph.initializer),
        *(make("Constant", [], [s.values.name], sparse_value=s) for s in graph.sparse_initializer),
    ]


_SCANS = 9
_CHANGED: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), (13,)),
    "BatchNormalization": (14, 15),
    "GridSample": (20,),
    "GroupNormalization": (21,),
    "RoiAlign": (16,),
    "Scan": (_SCANS,),
    "Split": (18,),
}
"""Versions from which an operator means something else although it is written alike."""


def _same(name: str, version: int, opset: int, node: onnx.NodeProto) -> bool:
    """Whether an operator, and all in its subgraphs, is written alike and means the same in both versions."""
    own = (n for g in subgraphs(node) for n in g.node)
    if not all(_same(n.op_type, version, opset, n) for n in own if n.domain in ("", "ai.onnx")):
        return False
    if not onnx.defs.has(name):
        return True
    try:
        old, new = (onnx.defs.get_schema(name, v, "") for v in (version, opset))
    except onnx.defs.SchemaError:
        return False
    if new.deprecated:
        return False
    if old.since_version == new.since_version or opset < version:
        return old.since_version == new.since_version
    changed = any(version < v <= opset for v in _CHANGED.get(name, ()))
    return not changed and {a.name for a in node.attribute} <= set(new.attributes)


def _converted(
    op: Builder, attributes: Mapping[str, Any], given: Sequence[TensorType], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    """The nodes that mean the same at the opset that is written, by ONNX's own converter."""
    name, version = attributes["name"], attributes["version"]
    model = single(attributes, given)
    if version < _SCANS <= op.opset and any(n.op_type == "Scan" for n in every_node(model.graph)):
        raise LoweringError(f"Scan of opset {version} has a batch axis, and from opset {_SCANS} on none")
    try:
        found = version_converter.convert_version(model, op.opset)
    except (RuntimeError, ValueError) as e:
        what = f"{name} of opset {version} has no form at opset {op.opset}: {str(e).strip().splitlines()[-1]}"
        raise LoweringError(what, hint=f"export with opset={version}") from None
    renamed = {f"y{i}": out for i, out in enumerate(outputs)}
    made = [*_holders(found.graph), *found.graph.node]
    for out in (o for n in made for o in n.output if o):
        renamed.setdefault(out, op.unique(f"{name}_{out}"))
    for node in made:
        node.output[:] = [renamed.get(n, n) for n in node.output]
        node.input[:] = [renamed.get(n, n) for n in node.input]
        for graph in subgraphs(node):
            rename(graph, renamed)
    return made


def placed_node(node: onnx.NodeProto, known: Mapping[str, onnx_ir.Value]) -> onnx_ir.Node:
    """The node over values of the graph. known: by the names that the node, and subgraphs of it, read."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    names = {name: str(v.name) for name, v in known.items()}
    for graph in subgraphs(copy):
        rename(graph, names)
    for i, name in enumerate(copy.input):
        copy.input[i] = names.get(name, name)
    read = dict.fromkeys(reads(copy))
    around = onnx.GraphProto(name="around", node=[copy], input=[onnx.ValueInfoProto(name=n) for n in read])
    holder = onnx_ir.serde.deserialize_graph(around)
    (made,) = holder
    values = {str(v.name): v for v in known.values()}
    for v in list(holder.inputs):
        v.replace_all_uses_with(values[str(v.name)])
    holder.remove(made)
    return made


def captured(node: onnx.NodeProto) -> list[str]:
    """Names that the subgraphs of a node read from outside."""
    inputs = set(node.input)
    return [n for n in reads(node) if n not in inputs]
