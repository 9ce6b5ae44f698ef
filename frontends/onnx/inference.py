"""Types of the outputs of foreign nodes: by ONNX's schemas, by what the file says, or by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import onnx
from onnx import shape_inference

from ...ir.errors import MonographError, RuntimeInputError
from ...ir.types import Dim, DimLike, TensorType, parse_dim
from .errors import OnnxFileError, UntypedError
from .file import OnnxFile
from .initializers import place_of
from .nested import subgraphs
from .runtime import open_session
from .types import DTYPES, Symbols, proto_of, type_of

_SMALL = 1024
"""Elements of the largest initializer whose numbers inference sees."""


_FAILURES = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, TypeError, ValueError)
"""What ONNX's inference raises."""


class Inference:
    """Types of nodes of one file."""

    def __init__(self, file: OnnxFile, symbols: Symbols) -> None:
        self.file, self.symbols = file, symbols

    def types(
        self,
        node: onnx.NodeProto,
        version: int,
        given: Mapping[str, TensorType],
        data: Mapping[str, onnx.TensorProto],
    ) -> list[TensorType]:
        """One type for each output with a name. given: of the operands by name. data: those whose numbers are known.

        Raises OnnxFileError for what the schema forbids, and where nothing says a type.
        """
        found: dict[str, TensorType] = {}
        if not subgraphs(node):
            found = self._reduced(node, given, data) or self._by_schema(node, version, given, data)
        elif node.op_type == "Loop":
            found = self._carried(node, given)
        for source in (self._said, self._inferred, self._by_runtime):
            if all(name in found for name in node.output if name):
                break
            found = {**{n: t for n in node.output if n and (t := source(n)) is not None}, **found}
        lost = next((n for n in node.output if n and n not in found), None)
        if lost is not None:
            what = f"nothing says the type of its output {lost!r}"
            raise UntypedError(what, place=place_of(self.file.path, node))
        return [found[name] for name in node.output if name]

    def _reduced(
        self, node: onnx.NodeProto, given: Mapping[str, TensorType], data: Mapping[str, onnx.TensorProto]
    ) -> dict[str, TensorType]:
        """Of a reduction over axes that are computed: ONNX's inference says that it has no axes at all."""
        axes = node.input[1] if len(node.input) > 1 else ""
        if not node.op_type.startswith("Reduce") or not axes or axes in data:
            return {}
        x, said = given[node.input[0]], {a.name: a.i for a in node.attribute}
        count, none = given[axes].shape[0], said.get("noop_with_empty_axes", 0)
        if said.get("keepdims", 1):
            return {node.output[0]: TensorType(x.dtype, tuple(self.symbols.fresh() for _ in x.shape))}
        if not isinstance(count, int):
            raise UntypedError(
                f"how many axes {node.op_type} takes away is not known", place=place_of(self.file.path, node)
            )
        left = x.rank - count if count or none else 0
        return {node.output[0]: TensorType(x.dtype, tuple(self.symbols.fresh() for _ in range(left)))}

    def _carried(self, node: onnx.NodeProto, given: Mapping[str, TensorType]) -> dict[str, TensorType]:
        """Of what a Loop carries from turn to turn, where its rank stays: ONNX's inference says no rank of it."""
        body = next((a.g for a in node.attribute if a.name == "body"), onnx.GraphProto())
        found: dict[str, TensorType] = {}
        for first, made, last in zip(node.input[2:], body.output[1:], node.output, strict=False):
            turned = self._said(made.name) or self._inferred(made.name)
            if not last or first not in given or turned is None or turned.rank != given[first].rank:
                continue
            pairs = zip(given[first].shape, turned.shape, strict=True)
            found[last] = TensorType(turned.dtype, tuple(a if a == b else self.symbols.fresh() for a, b in pairs))
        return found

    def _by_schema(
        self,
        node: onnx.NodeProto,
        version: int,
        given: Mapping[str, TensorType],
        data: Mapping[str, onnx.TensorProto],
    ) -> dict[str, TensorType]:
        place = place_of(self.file.path, node)
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not onnx.defs.has(node.op_type, domain):
            return {}
        try:
            schema = onnx.defs.get_schema(node.op_type, version, domain)
        except onnx.defs.SchemaError:
            what = f"{node.op_type} does not exist in version {version} of {domain or 'ai.onnx'}"
            raise OnnxFileError(what, place=place) from None
        opsets = [onnx.helper.make_opsetid(domain, version)]
        types = {n: proto_of(t) for n, t in given.items()}
        try:
            made: Mapping[str, onnx.TypeProto] = shape_inference.infer_node_outputs(
                schema, node, types, dict(data), opset_imports=opsets
            )
        except _FAILURES as e:
            raise OnnxFileError(f"is not what {node.op_type} allows: {e}", place=place) from None
        read = (type_of(t, self.symbols, place, self._own) for t in made.values())
        return {n: t for n, t in zip(made, read, strict=True) if t is not None}

    def _own(self, text: str) -> DimLike:
        """A dimension that was given to inference as text; a new one where inference made up a name."""
        try:
            found = parse_dim(text)
        except MonographError:
            return self.symbols.fresh()
        return found if not isinstance(found, Dim) or self.symbols.has(found.symbols) else self.symbols.fresh()

    def _said(self, name: str) -> TensorType | None:
        return self._read(self._value_infos, name)

    @cached_property
    def _value_infos(self) -> dict[str, onnx.TypeProto]:
        return {} if self._stale else _infos(self.file.model.graph)

    @cached_property
    def _stale(self) -> bool:
        """Whether what the file says of its inner values contradicts its operators: fusers leave old types behind."""
        if not self.file.model.graph.value_info:
            return False
        try:
            shape_inference.infer_shapes(self._skeleton, data_prop=True)
        except (onnx.shape_inference.InferenceError, RuntimeError):
            return True
        return False

    def _inferred(self, name: str) -> TensorType | None:
        return self._read(self._whole, name)

    @cached_property
    def _whole(self) -> dict[str, onnx.TypeProto]:
        """What inference finds from the types that the file gives, or without those inside that are not true."""
        bare = onnx.ModelProto()
        for model in (self._skeleton, bare):
            try:
                return _infos(shape_inference.infer_shapes(model, data_prop=True).graph)
            except _FAILURES as e:
                reason = str(e)
            bare.CopyFrom(model)
            del bare.graph.value_info[:]
        raise OnnxFileError(f"has types that contradict each other: {reason}", place=str(self.file.path))

    def _read(self, infos: Mapping[str, onnx.TypeProto], name: str) -> TensorType | None:
        place = f"{self.file.path}: {name}"
        return type_of(infos[name], self.symbols, place, self.symbols.later) if name in infos else None

    @cached_property
    def _skeleton(self) -> onnx.ModelProto:
        """The model with its larger initializers as inputs: what inference needs, without the weights."""
        model = onnx.ModelProto()
        model.CopyFrom(_without_graph(self.file.model))
        graph, own = model.graph, self.file.model.graph
        graph.name = own.name
        for field in ("node", "input", "output", "value_info"):
            getattr(graph, field).extend(getattr(own, field))
        listed = {v.name for v in own.input}
        for t in own.initializer:
            count = 1
            for d in t.dims:
                count *= d
            if count <= _SMALL and t.data_location != onnx.TensorProto.EXTERNAL:
                graph.initializer.append(t)
            elif t.name not in listed:
                graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
        for s in own.sparse_initializer:
            graph.input.append(onnx.helper.make_tensor_value_info(s.values.name, s.values.data_type, list(s.dims)))
        return model

    def _by_runtime(self, name: str) -> TensorType | None:
        """What ONNX Runtime makes of operators of its own, where it is installed."""
        if name not in self._runtime:
            return None
        element, shape = self._runtime[name]
        shape = shape or None  # The runtime says an unknown rank as it says rank 0.
        code = next((k for k, d in DTYPES.items() if _RUNTIME.get(element) == str(d)), None)
        if code is None or shape is None:
            return None
        dims = [
            self.symbols.fresh() if d is None else self.symbols.named(d) if isinstance(d, str) else d for d in shape
        ]
        return TensorType(DTYPES[code], tuple(dims))

    @cached_property
    def _runtime(self) -> dict[str, tuple[str, list[Any] | None]]:
        model = onnx.ModelProto()
        model.CopyFrom(self._skeleton)
        listed = {v.name for v in model.graph.output}
        made = [n for node in model.graph.node for n in node.output if n and n not in listed]
        model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in made)
        try:
            session = open_session(model.SerializeToString(), optimized=False)
        except (ImportError, RuntimeInputError):
            return {}
        return {o.name: (o.type, o.shape) for o in session.get_outputs()}


_RUNTIME = {
    "tensor(float)": "f32",
    "tensor(double)": "f64",
    "tensor(float16)": "f16",
    "tensor(bfloat16)": "bf16",
    "tensor(int64)": "i64",
    "tensor(int32)": "i32",
    "tensor(int16)": "i16",
    "tensor(int8)": "i8",
    "tensor(uint64)": "u64",
    "tensor(uint32)": "u32",
    "tensor(uint16)": "u16",
    "tensor(uint8)": "u8",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}
"""Names of types in ONNX Runtime => in the IR."""


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    found = onnx.ModelProto(ir_version=model.ir_version)
    found.opset_import.extend(model.opset_import)
    return found


def _infos(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """Types by name, of a graph and the subgraphs in it."""
    found = {v.name: v.type for v in (*graph.value_info, *graph.output)}
    for node in graph.node:
        for inner in subgraphs(node):
            found = _infos(inner) | found
    return found
