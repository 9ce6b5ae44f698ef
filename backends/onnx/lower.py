"""Graph and weights to an ONNX model whose initializers stay lazy."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir

from ...ir.errors import LoweringError, WeightsError
from ...ir.graph import Graph, Node, Value
from ...ir.op import body_of
from ...ir.ops.foreign import Foreign
from ...ir.value import leaves
from ...ir.weights import Computed, Tensor, param_only
from ...passes.encode import plain_again
from ...passes.manager import Pipeline
from .builder import Builder, Handle, UnavailableError
from .metadata import metadata_of
from .quantized import SINCE as BLOCKS_SINCE
from .rewrites import PORTABLE
from .tensors import dim_names, onnx_shape

OLDEST_OPSET, NEWEST_OPSET = 20, onnx.defs.onnx_opset_version()
PRODUCER = "monograph"
_SMALL = 1 << 20
"""A weight expression below this many bytes is stored evaluated even where its parameters are stored too."""


_FEW = 1 << 14
"""And below this many where the parameters take fewer."""


def lower(
    graph: Graph, weights: Mapping[str, Tensor], opset: int = 23, *, pipeline: Pipeline = PORTABLE, narrow: bool = False
) -> onnx_ir.Model:
    """The ONNX model of a graph, which is left as it was; no weight is read.

    weights: by checkpoint path, of the graph's shapes; another float width is converted when written.
    opset: below 23, attention, rotary and RMS norm are written out in parts. pipeline: the rewrites to target ops;
    other targets give their own, in which `domain="com.microsoft"` is allowed. narrow: weights that expressions make
    larger (integers times a scale, f16 as f32) are stored as they are, and the runtime evaluates where it opens the
    file. Raises LoweringError for an op without an ONNX form, WeightsError for a missing tensor or a wrong shape.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise LoweringError(f"opset {opset} is outside the supported {OLDEST_OPSET} to {NEWEST_OPSET}")
    return _Lowering(prepared(graph, opset, pipeline), weights, Builder(opset), narrow=narrow).model()


def prepared(graph: Graph, opset: int, pipeline: Pipeline = PORTABLE, dump: Path | None = None) -> Graph:
    """A copy of a graph as it is lowered. dump: folder for its text after every pass."""
    graph = graph.copy()
    if opset < BLOCKS_SINCE:
        plain_again(graph)
    pipeline.run(graph, dump=dump)
    return graph


class _Lowering:
    def __init__(self, graph: Graph, weights: Mapping[str, Tensor], op: Builder, *, narrow: bool) -> None:
        self.graph, self.weights, self.op = graph, weights, op
        self.folded, self.first = folded_values(graph, narrow=narrow), first_parameters(graph)
        self.numbers: dict[str, int] = {}
        self.handles: dict[Value, Handle] = {}

    def model(self) -> onnx_ir.Model:
        for name, v in self.graph.outputs.items():
            for kind, taken in (("an input", self.graph.inputs), ("a parameter", self.graph.params)):
                if name in taken and taken[name] is not v:
                    raise LoweringError(f"output {name} has the name of {kind}; ONNX has one name for one value")
            self.op.reserve(name)
        for name in self.graph.params:
            self.op.reserve(name)
        for name, v in self.graph.inputs.items():
            self.handles[v] = self.op.input(name, v.type)
        needed = self.needed()
        for node in self.graph:
            if node in needed:
                operands = [None if v is None else self.operand(v) for v in node.operands]
                results = lower_node(self.op, node, operands)
                self.learn(node, results)
                self.handles.update(zip(node.outputs, results, strict=True))
        outputs = self.op.finish({name: self.operand(v) for name, v in self.graph.outputs.items()})
        return assemble(self.op, self.graph, outputs)

    def learn(self, node: Node, results: Sequence[Handle]) -> None:
        """Note the sizes that only the results of a foreign node show."""
        if isinstance(node.op, Foreign):
            for v, h in zip(node.outputs, results, strict=True):
                for axis, d in enumerate(v.shape):
                    self.op.learn(d, h, axis)

    def needed(self) -> set[Node]:
        """Nodes to write: what leads to an output, stopping at weight expressions that are stored evaluated."""
        wanted = set(self.graph.outputs.values()) - self.folded
        nodes: set[Node] = set()
        for node in self.graph.reversed():
            if any(v in wanted for v in node.outputs):
                nodes.add(node)
                wanted.update(v for v in node.arguments if v not in self.folded)
        return nodes

    def operand(self, v: Value) -> Handle:
        if v not in self.handles:
            if v in self.folded:
                self.handles[v] = self.op.initializer(self.expression_name(v), Computed(v, self.weights))
            else:
                self.handles[v] = self.op.initializer(v.name, self.parameter(v))
        return self.handles[v]

    def parameter(self, v: Value) -> Tensor:
        tensor = self.weights[v.name]
        if tensor.shape != v.shape:
            raise WeightsError(f"{v.name} is {tensor.type}, but graph {self.graph.name} expects {v.type}")
        return tensor.cast(v.dtype)

    def expression_name(self, v: Value) -> str:
        """The path of the first parameter in the expression, and what was done last."""
        assert v.producer is not None
        name = f"{self.first[v].name}.{v.producer.op.name}"
        while True:
            count = self.numbers[name] = self.numbers.get(name, -1) + 1
            free = f"{name}.{count}" if count else name
            if free not in self.op.initializers and free not in self.graph.params:
                return free


def first_parameters(graph: Graph) -> dict[Value, Value]:
    """The first parameter that each value is computed from, if it is computed from one."""
    found = {v: v for v in graph.params.values()}
    for node in graph:
        first = next((found[v] for v in node.arguments if v in found), None)
        if first is not None:
            found.update(dict.fromkeys(node.outputs, first))
    return found


def folded_values(graph: Graph, *, narrow: bool = False) -> set[Value]:
    """Results that depend on parameters only and are stored evaluated, because something else reads them.

    Left to run time: large ones over a parameter that is also read as it is (a tied embedding), which would be
    stored twice; narrow: and those that are larger than what they are made of.
    """
    fixed, first = param_only(graph), first_parameters(graph)

    def read_outside(v: Value) -> bool:
        return graph.is_output(v) or any(o not in fixed for user in v.users for o in user.outputs)

    found = {v for v in fixed if v.producer is not None and v in first and read_outside(v)}
    stored = {v for v in graph.params.values() if read_outside(v)}

    def stays(v: Value) -> bool:
        parts = leaves(v)
        wider = narrow and _bytes(v) > max(_FEW, sum(map(_bytes, parts)))
        return wider or (_bytes(v) > _SMALL and bool(stored.intersection(parts)))

    return {v for v in found if not stays(v)}


def _bytes(v: Value) -> int:
    size = v.type.bytes
    return size if isinstance(size, int) else 0


def lower_node(op: Builder, node: Node, operands: Sequence[Handle | None]) -> list[Handle]:
    """Write one IR node, by its `onnx` method or else by its body. Raises LoweringError with the user's place."""
    with op.at(node.location, node.op.name):
        try:
            return _lower(op, node, operands)
        except LoweringError as e:
            if e.place:
                raise
            raise LoweringError(
                f"{node.op.name}: {e.what}", place=str(node.location), details=e.details, hint=e.hint
            ) from None


def _lower(op: Builder, node: Node, operands: Sequence[Handle | None]) -> list[Handle]:
    """As `lower_node`, with the place already set; nodes of a body keep the place of the composite."""
    if node.op.onnx is not None:
        try:
            return _stamped(node, node.op.onnx(op, *operands, **node.attributes))
        except UnavailableError:
            if node.op.body is None:
                raise
    if node.op.body is None:
        raise LoweringError(f"{node.op.name} has neither an ONNX form nor a body")
    types = [None if v is None else v.type for v in node.operands]
    body = body_of(node.op, types, node.attributes)
    names = node.op.signature.operand_names(len(operands))
    given = dict(zip(names, operands, strict=True))
    values: dict[Value, Handle | None] = {v: given[k] for k, v in body.inputs.items()}
    for inner in body:
        results = _lower(op, inner, [None if v is None else values[v] for v in inner.operands])
        values.update(zip(inner.outputs, results, strict=True))
    return _stamped(node, tuple(values[v] for v in body.outputs.values()))


def _stamped(node: Node, results: Any) -> list[Handle]:
    handles: list[Handle] = list(cast("tuple[Handle, ...]", results)) if isinstance(results, tuple) else [results]
    if len(handles) != len(node.outputs):
        raise LoweringError(f"{node.op.name} gave {len(handles)} ONNX values for {len(node.outputs)} outputs")
    for h, v in zip(handles, node.outputs, strict=True):
        if h.known and h.type != v.type:
            raise LoweringError(f"{node.op.name} gave {h} where {v.type} was promised")
        h.stamp(v.type)
    return handles


def assemble(op: Builder, graph: Graph, outputs: Mapping[str, Handle]) -> onnx_ir.Model:
    """An ONNX model from a finished builder: types and dimension names, inputs and outputs, opsets, producer."""
    symbols = {s for v in graph.inputs.values() for s in v.type.symbols}
    names = dim_names(symbols)
    for h in op.handles():
        if h.known:
            h.value.shape = onnx_shape(h.shape, names)
    body = onnx_ir.Graph(
        [h.value for h in op.inputs.values()],
        [h.value for h in outputs.values()],
        nodes=op.nodes,
        initializers=[h.value for h in op.initializers.values()],
        opset_imports={"": op.opset, **{d: op.versions.get(d, 1) for d in sorted(op.domains) if d}},
        name=graph.name,
    )
    version = importlib.metadata.version("monograph")
    return onnx_ir.Model(
        body,
        ir_version=_ir_version(op.opset),
        producer_name=PRODUCER,
        producer_version=version,
        metadata_props=metadata_of(graph),
    )


def _ir_version(opset: int) -> int:
    """The oldest file version that has the opset and 4-bit integers, so that older runtimes can read it."""
    return max(10, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))
