"""Encoded weights in a graph: a parameter whose blocks are kept becomes `dequantize` of what is stored."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..ir.encodings import Encoding
from ..ir.graph import Graph, Value
from ..ir.ops import dequantize
from ..ir.ops.quant import Dequantize
from ..ir.tensors import Tensor
from .decompose import inline_body


def keep_encodings(graph: Graph, weights: Mapping[str, Tensor], trained: Collection[str] = ()) -> int:
    """Parameters whose weights are encoded are read through `dequantize`, all but the `trained` ones. Gives how many.

    The graph computes what it did; no weight is read.
    """
    kept = 0
    for path, v in list(graph.params.items()):
        tensor = weights.get(path)
        if tensor is None or tensor.type.encoding is None or v.type.encoding is not None or path in trained:
            continue
        encode_param(graph, v, tensor.type.encoding)
        kept += 1
    return kept


def encode_param(graph: Graph, v: Value, encoding: Encoding) -> Value:
    """Put an encoded parameter in the place of a plain one; gives it. Raises EncodingError where it does not fit."""
    stored = Value(graph, v.type.encoded(encoding), v.name)
    graph.params[v.name] = stored
    reader = min(v.users, key=lambda node: node.order, default=None)
    # Before everything else: passes move readers of weights as they like, as if the weights were parameters.
    with graph.at(next(iter(graph), None), reader.location if reader is not None else None):
        graph.replace(v, dequantize(stored))
    return stored


def stored_weight(v: Value | None) -> Value | None:
    """The parameter that a weight is, plain or dequantized; None for anything else."""
    while v is not None and v.producer is not None and isinstance(v.producer.op, Dequantize):
        v = v.producer["w"]
    return v if v is not None and v.is_param else None


def plain_again(graph: Graph) -> int:
    """Encoded parameters that are read through `dequantize` only become plain ones, whose values are the numbers.

    Gives how many. What reads them is stored and multiplied as floats; `through_float` names them.
    """
    changed = 0
    for path, v in list(graph.params.items()):
        nodes = v.users
        if v.type.encoding is None or not all(isinstance(n.op, Dequantize) for n in nodes):
            continue
        plain = graph.params[path] = Value(graph, v.type.decoded, path)
        for node in nodes:
            graph.replace(node.output, plain)
            graph.erase(node)
        changed += bool(nodes)
    return changed


def through_float(graph: Graph, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Block format by name of each weight that is stored in blocks but that the graph reads as plain numbers."""
    found: dict[str, str] = {}
    for path, v in graph.params.items():
        tensor = weights.get(path)
        if tensor is not None and v.type.encoding is None:
            kind = tensor.source_format or (str(tensor.type.encoding) if tensor.type.encoding is not None else "")
            found |= {path: kind} if kind else {}
    return found


def encoding_of(v: Value) -> Encoding | None:
    """The encoding of the parameter that a weight is dequantized from; None for a plain one."""
    weight = stored_weight(v)
    return None if weight is None else weight.type.encoding


def open_encodings(graph: Graph) -> int:
    """Every `dequantize` becomes arithmetic over the stored parts, which targets evaluate and store. Gives how many."""
    left = [node for node in graph if isinstance(node.op, Dequantize)]
    for node in left:
        inline_body(graph, node)
    return len(left)
