"""Foreign nodes of a graph as ONNX nodes: as they were read, at the version that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir
from onnx import version_converter

from ...frontends.onnx.file import reads, rename, subgraphs
from ...frontends.onnx.foreign import node_of, single
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
    made: dict[str, Handle] = {}
    for node in nodes:
        made |= op.placed(node, {**names, **made})
    results = tuple(made[name] for name in outputs)
    for handle, type in zip(results, types, strict=True):
        handle.stamp(type)
    return results


def _same(name: str, version: int, opset: int, node: onnx.NodeProto) -> bool:
    """Whether an operator, and all in its subgraphs, means the same in both versions."""
    own = (n for g in subgraphs(node) for n in g.node)
    inside = all(_same(n.op_type, version, opset, n) for n in own if n.domain in ("", "ai.onnx"))
    if not onnx.defs.has(name):
        return inside
    try:
        schemas = [onnx.defs.get_schema(name, v, "") for v in (version, opset)]
    except onnx.defs.SchemaError:
        return False
    return inside and schemas[0].since_version == schemas[1].since_version


def _converted(
    op: Builder, attributes: Mapping[str, Any], given: Sequence[TensorType], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    """The nodes that mean the same at the opset that is written, by ONNX's own converter."""
    model = single(attributes, given)
    name, version = attributes["name"], attributes["version"]
    try:
        found = version_converter.convert_version(model, op.opset)
    except (RuntimeError, ValueError) as e:
        what = f"{name} of opset {version} has no form at opset {op.opset}: {str(e).strip().splitlines()[-1]}"
        raise LoweringError(what, hint=f"export with opset={version}") from None
    renamed = {f"y{i}": out for i, out in enumerate(outputs)}
    for node in found.graph.node:
        for i, out in enumerate(node.output):
            node.output[i] = renamed.setdefault(out, op.unique(f"{name}_{out}")) if out else ""
        for i, given_name in enumerate(node.input):
            node.input[i] = renamed.get(given_name, given_name)
    holders = [
        onnx.NodeProto(
            op_type="Constant", output=[renamed.setdefault(t.name, op.unique(f"{name}_{t.name}"))],
            attribute=[onnx.helper.make_attribute("value", t)],
        )
        for t in found.graph.initializer
    ]
    for node in found.graph.node:
        for i, given_name in enumerate(node.input):
            node.input[i] = renamed.get(given_name, given_name)
    return [*holders, *found.graph.node]


def placed_node(
    node: onnx.NodeProto, known: Mapping[str, onnx_ir.Value], outputs: Sequence[onnx_ir.Value]
) -> onnx_ir.Node:
    """The node over values of the graph. known: by the names that the node, and subgraphs of it, read."""
    renamed = {name: str(v.name) for name, v in known.items()}
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for graph in subgraphs(copy):
        rename(graph, renamed)
    attributes = [onnx_ir.serde.deserialize_attribute(a) for a in copy.attribute]
    inputs = [known[n] if n else None for n in node.input]
    return onnx_ir.Node(node.domain, node.op_type, inputs, attributes, outputs=list(outputs))


def captured(node: onnx.NodeProto) -> list[str]:
    """Names that the subgraphs of a node read from outside."""
    inputs = set(node.input)
    return [n for n in reads(node) if n not in inputs]
