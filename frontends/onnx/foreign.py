"""Nodes of an ONNX file that the IR has no op for: how they are carried, and how they run."""

from __future__ import annotations

import base64
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import onnx

from ...ir.errors import RuntimeInputError
from ...ir.op import op
from ...ir.ops.foreign import Fields, Foreign
from ...ir.tensors import Array
from ...ir.types import DType, TensorType
from .runtime import failures, open_session, run_within
from .types import ELEMENTS, proto_of

_A = onnx.AttributeProto
_PLAIN = {_A.INT, _A.FLOAT, _A.INTS, _A.FLOATS}


def is_plain(dtype: DType) -> bool:
    """Whether ONNX Runtime takes a type in NumPy arrays: those that NumPy has itself."""
    return dtype.numpy.kind in "iufbO" and dtype.numpy.isbuiltin == 1


class OnnxNode(Foreign):
    """A node of an ONNX file as it stands there: an operator of a domain at a version. (ONNX IR, "Nodes")"""

    def numpy(self, *xs: Any, **attributes: Any) -> tuple[Array, ...]:
        given = [x for x in xs if x is not None]
        model = single(attributes, [TensorType(DType.of(x.dtype), x.shape) for x in given])
        outputs = [dtype for dtype, _ in attributes["types"]]
        plain = all(map(is_plain, [*outputs, *(DType.of(x.dtype) for x in given)]))
        run = runner(model.SerializeToString(deterministic=True), plain)
        names = [v.name for v in model.graph.input]
        found = run(dict(zip(names, given, strict=True)))
        return tuple(np.asarray(y).astype(d.numpy, copy=False) for y, d in zip(found, outputs, strict=True))


onnx_node = op(OnnxNode)


def fields_of(node: onnx.NodeProto) -> Fields:
    """Attributes of a node as text can hold them: numbers and texts plain, all else as the bytes of its proto."""
    return tuple((a.name, _field(a)) for a in node.attribute)


def _field(a: onnx.AttributeProto) -> Any:
    if not a.ref_attr_name and not a.doc_string:
        found: Any = onnx.helper.get_attribute_value(a) if a.type in _PLAIN or a.type == _A.STRING else None
        if a.type == _A.STRING and found.isascii():
            return found.decode()
        if a.type in (_A.INT, _A.FLOAT) and math.isfinite(found):
            return found
        if a.type in (_A.INTS, _A.FLOATS) and len(found) and all(map(math.isfinite, found)):
            return tuple(found)
    return ((base64.b64encode(a.SerializeToString(deterministic=True)).decode(),),)


def attributes_of(fields: Fields) -> list[onnx.AttributeProto]:
    """The inverse of `fields_of`."""
    found: list[onnx.AttributeProto] = []
    for name, value in fields:
        if isinstance(value, tuple) and isinstance(value[0], tuple):
            encoded = cast("tuple[tuple[str]]", value)[0][0]
            found.append(onnx.AttributeProto.FromString(base64.b64decode(encoded)))
        else:
            found.append(onnx.helper.make_attribute(name, value))
    return found


def node_of(attributes: Any, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto:
    """The node. inputs: names of the operands that are given, without those that subgraphs capture."""
    given, made = _spaced(inputs, attributes["absent"]), _spaced(outputs, attributes["skipped"])
    node = onnx.helper.make_node(attributes["name"], given, made, domain=attributes["domain"])
    node.attribute.extend(attributes_of(attributes["fields"]))
    return node


def _spaced(names: Sequence[str], gaps: Sequence[int]) -> list[str]:
    """Names with nothing at these places."""
    found, rest = list[str](), list(names)
    while rest or len(found) in gaps:
        found.append("" if len(found) in gaps else rest.pop(0))
    return found


def single(attributes: Any, given: Sequence[TensorType]) -> onnx.ModelProto:
    """A model of one node on operands of these types; its outputs are `y0`, `y1`..."""
    captures: tuple[str, ...] = attributes["captures"]
    count = len(given) - len(captures)
    names = [*(f"x{i}" for i in range(count)), *captures]
    outputs = [f"y{i}" for i in range(len(attributes["types"]))]
    typed = [TensorType(dtype, shape) for dtype, shape in attributes["types"]]
    declared = [onnx.helper.make_value_info(n, _loose(t)) for n, t in zip(outputs, typed, strict=True)]
    graph = onnx.helper.make_graph(
        [node_of(attributes, names[:count], outputs)],
        "node",
        [onnx.helper.make_value_info(n, proto_of(t)) for n, t in zip(names, given, strict=True)],
        declared,
    )
    return model_around(graph, attributes["domain"], attributes["version"])


def model_around(graph: onnx.GraphProto, domain: str, version: int) -> onnx.ModelProto:
    """A model of that graph, whose nodes are of one domain and version, and of domains that subgraphs use."""
    opsets = {domain: version}
    opsets.setdefault("", min(21, onnx.defs.onnx_opset_version()))
    found = [onnx.helper.make_opsetid(d, v) for d, v in opsets.items()]
    try:
        ir_version = max(10, onnx.helper.find_min_ir_version_for(found[-1:] if domain else found[:1]))
    except ValueError:
        ir_version = 10
    return onnx.helper.make_model(graph, opset_imports=found, ir_version=ir_version)


def _loose(t: TensorType) -> onnx.TypeProto:
    """The type without its sizes, which the run decides."""
    return onnx.helper.make_tensor_type_proto(ELEMENTS[t.dtype], [None] * t.rank)


Run = Callable[[dict[str, Array]], Iterable[Array]]


@functools.lru_cache(maxsize=256)
def runner(model: bytes, plain: bool) -> Run:
    """What runs a model of one node: ONNX Runtime where it is installed and has a kernel, or ONNX's own evaluator.

    Raises RuntimeInputError where neither has the operator.
    """
    parsed = onnx.ModelProto.FromString(model)
    node = parsed.graph.node[0]
    names = [v.name for v in parsed.graph.output]
    why = ""
    if plain:
        try:
            return _runtime(model, names)
        except (ImportError, RuntimeInputError) as e:
            why = str(e)
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator: Any = ReferenceEvaluator(parsed)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as e:
        what = f"{node.domain or 'ai.onnx'}.{node.op_type} cannot be run here: {e}"
        raise RuntimeInputError(what, details=[why] if why else []) from None

    def run(inputs: dict[str, Array]) -> Iterable[Array]:
        try:
            return evaluator.run(names, inputs)
        except Exception as e:  # Its operators raise whatever NumPy, or a check of their own, does.
            what = f"{node.domain or 'ai.onnx'}.{node.op_type} cannot be run here: {str(e).strip() or type(e).__name__}"
            raise RuntimeInputError(what, details=[why] if why else []) from None

    return run


def _runtime(model: bytes, names: list[str]) -> Run:
    session = open_session(model)

    def run(inputs: dict[str, Array]) -> Iterable[Array]:
        try:
            return run_within(session, names, inputs, "")
        except failures() as e:
            raise RuntimeInputError(str(e)) from None

    return run
