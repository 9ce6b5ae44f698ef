"""What lies in the branches of an If: raised and fused as graphs of their own, with their weights outside of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir

from .backends.onnx.save import INLINE_BYTES
from .backends.onnx.tensors import WeightTensor
from .frontends.onnx.file import OnnxFile
from .frontends.onnx.foreign import attributes_of, fields_of, onnx_node
from .frontends.onnx.initializers import read_initializer, read_sparse
from .frontends.onnx.load import read_graph
from .frontends.onnx.nested import every_node, free, subgraphs
from .frontends.onnx.types import proto_of
from .ir.errors import MonographError
from .ir.graph import Graph, Location, Node, Value
from .ir.ops.foreign import Foreign
from .ir.tensors import ArrayTensor, Tensor
from .passes.raising.constants import array_of

if TYPE_CHECKING:
    from .raised import Raised

SIDES = ("then_branch", "else_branch")
KEPT = frozenset(
    "ConvInteger DequantizeLinear DynamicQuantizeLinear GatherBlockQuantized MatMulInteger MatMulNBits QLinearConv "
    "QLinearMatMul Celu Elu HardSigmoid HardSwish InstanceNormalization LogSoftmax Mish Selu Softsign".split()
)
"""Operators that stay, as one kernel computes each: products of codes, which are small and fast, and what the IR has
no layer for, only several primitives."""
STATIC = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Around an operator they say that its kernel may be one on integers: ONNX Runtime joins them when it opens a file."""
Raise = Callable[[Graph, Mapping[str, Tensor], int], "Raised"]


@dataclass
class Branch:
    """graph: as it was read, with its weights. raised: what became of it."""

    graph: Graph
    weights: Mapping[str, Tensor]
    raised: Raised


@dataclass
class Branches:
    """All of a graph. weights: of the graph that is written, by name. done: places of what was replaced. left: of what
    stays, and why."""

    weights: dict[str, Tensor]
    found: list[Branch] = field(default_factory=list[Branch])
    done: set[Location] = field(default_factory=set[Location])
    left: dict[Location, str] = field(default_factory=dict[Location, str])


def kept_of(file: OnnxFile) -> frozenset[str]:
    """Operators that stay as they are: those of KEPT, and where what is computed is quantized too, what says so."""
    static = any(n.op_type == "QuantizeLinear" and not n.domain for n in every_node(file.model.graph))
    return KEPT | STATIC if static else KEPT


def softmaxes_in(node: Node) -> int:
    """How many softmax lie in the graphs of a foreign node."""
    around = onnx.NodeProto(attribute=attributes_of(node.attributes["fields"]))
    return sum(n.op_type.endswith("Softmax") for n in every_node(onnx.GraphProto(node=[around])))


def raise_branches(graph: Graph, weights: Mapping[str, Tensor], opset: int, raised: Raise) -> Branches:
    """Replace the branches of every If in which attention may lie, in place, as `raised` makes them.

    opset: of the branches as they are written, and of all that is.
    """
    all_of = Branches(dict(weights))
    for node in [n for n in graph if isinstance(n.op, Foreign) and n.attributes["name"] == "If"]:
        if node.attributes["domain"] or not softmaxes_in(node):
            continue
        try:
            made = [_raised(node, side, weights, raised) for side in SIDES]
        except MonographError as e:
            all_of.left[node.location] = e.what
            continue
        _replace(graph, node, made, all_of, opset)
    return all_of


def _raised(node: Node, side: str, weights: Mapping[str, Tensor], raised: Raise) -> Branch:
    """One branch as a graph of its own: what it reads from outside are its inputs, or its weights."""
    fields = {a.name: a for a in attributes_of(node.attributes["fields"])}
    own: onnx.GraphProto = fields[side].g
    outside = dict(zip(node.attributes["captures"], node.arguments[1:], strict=True))
    tensors: dict[str, Tensor] = {}
    inputs: list[onnx.ValueInfoProto] = []
    path = Path(f"{node.location} {side}")
    for name in free(own):
        v = outside[name]
        numbers = None if v.is_param or v.producer is None else array_of(v)
        if v.is_param and v.type.encoding is None:
            tensors[name] = weights[v.name]
        elif numbers is not None:
            tensors[name] = ArrayTensor(numbers)
        elif v.type.encoding is None:
            inputs.append(onnx.helper.make_value_info(name, proto_of(v.type)))
        else:
            raise MonographError(f"it reads {name}, whose weights are encoded")
    tensors |= {t.name: read_initializer(t, path) for t in own.initializer}
    tensors |= {s.values.name: read_sparse(s, path) for s in own.sparse_initializer}
    body = onnx.GraphProto(name=own.name, node=own.node, input=inputs, output=own.output, value_info=own.value_info)
    opsets = {n.domain: 1 for n in every_node(body)} | {"": int(node.attributes["version"])}
    imports = [onnx.helper.make_opsetid(d, v) for d, v in opsets.items()]
    model = onnx.helper.make_model(body, opset_imports=imports)
    file = OnnxFile(path, model, tensors, opsets)
    graph, read, _ = read_graph(file, kept_of(file), wrap=False)
    return Branch(graph, read, raised(graph, read, opsets[""]))


def _replace(graph: Graph, node: Node, made: Sequence[Branch], all_of: Branches, opset: int) -> None:
    """Put an If with other branches in the place of one."""
    outside = dict(zip(node.attributes["captures"], node.arguments[1:], strict=True))
    captures: dict[str, Value] = {}
    kept = onnx.NodeProto()
    for side, branch in zip(SIDES, made, strict=True):
        proto = _body(graph, branch.raised.model, side, outside, captures, all_of.weights)
        kept.attribute.append(onnx.helper.make_attribute(side, proto))
    attributes: dict[str, Any] = {
        **node.attributes, "version": opset, "fields": fields_of(kept), "captures": tuple(captures),
    }  # fmt: skip
    with graph.at(node):
        results = graph.add(onnx_node.op, [node.arguments[0], *captures.values()], attributes)
    for old, new in zip(node.outputs, results, strict=True):
        graph.replace(old, new)
    graph.erase(node)
    all_of.found += made
    all_of.done.add(node.location)


def _body(
    graph: Graph,
    model: onnx_ir.Model,
    side: str,
    outside: Mapping[str, Value],
    captures: dict[str, Value],
    weights: dict[str, Tensor],
) -> onnx.GraphProto:
    """The graph of a branch as it is written; its weights become parameters outside of it, each once."""
    taken = {str(v.name): outside[str(v.name)] for v in model.graph.inputs}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if isinstance(tensor, WeightTensor) and tensor.nbytes > INLINE_BYTES:
            taken[name] = _parameter(graph, name, tensor.tensor, outside, weights)
            del model.graph.initializers[name]
    files: Any = onnx_ir  # Parts of its types are open.
    proto: onnx.GraphProto = files.serde.serialize_graph(model.graph)
    del proto.input[:], proto.value_info[:]
    names = {name: f"{side}/{name}" for name in _made_in(proto)}
    for name, v in taken.items():
        # A name outside may be that of another value for the other branch.
        names[name] = name if captures.get(name, v) is v else f"{name} of {side}"
        captures[names[name]] = v
    _renamed(proto, names)
    return proto


def _parameter(
    graph: Graph, name: str, tensor: Tensor, outside: Mapping[str, Value], weights: dict[str, Tensor]
) -> Value:
    """The parameter that holds a tensor: one that there is with the same numbers, or a new one."""
    known = outside.get(name)
    if known is not None and known.is_param and weights[known.name] is tensor:
        return known
    free, number = name, 0
    while free in graph.params:
        there = weights[free]
        if there is tensor or (there.type == tensor.type and np.array_equal(there.numpy(), tensor.numpy())):
            return graph.params[free]
        number += 1
        free = f"{name}.{number}"
    weights[free] = tensor
    return graph.param(free, tensor.type)


def _renamed(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give the values of a graph, and of those inside it, other names."""
    for part in (*graph.initializer, *graph.input, *graph.output):
        part.name = names.get(part.name, part.name)
    for s in graph.sparse_initializer:
        s.values.name = names.get(s.values.name, s.values.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        for inner in subgraphs(node):
            _renamed(inner, names)


def _made_in(graph: onnx.GraphProto) -> list[str]:
    """All names that a graph, and those inside it, give to values."""
    own = [v.name for v in graph.input] + [t.name for t in graph.initializer]
    own += [s.values.name for s in graph.sparse_initializer] + [o for n in graph.node for o in n.output if o]
    return own + [name for n in graph.node for inner in subgraphs(n) for name in _made_in(inner)]
