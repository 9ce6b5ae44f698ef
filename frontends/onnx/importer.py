"""From a parsed ONNX file to a Graph of primitives and its Weights, one node at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ...ir.dims import sources
from ...ir.errors import MonographError
from ...ir.graph import Graph, Node, Value, building
from ...ir.ops import constant
from ...ir.tensors import Array, ArrayTensor, Tensor
from ...ir.types import DimLike, DType, TensorType
from ...ir.weights import Weights
from ..starts import set_starts
from .equal import Equal, Sizes
from .errors import OnnxFileError, Unmapped
from .file import OnnxFile
from .fold import FOLDS, MOST
from .foreign import fields_of, onnx_node
from .inference import Inference
from .initializers import place_of, read_initializer, read_sparse
from .nested import every_node, free, reads, shown_first, subgraphs
from .places import written_at
from .sized import counts_of, sizes_of
from .tables import HANDLERS
from .types import ELEMENTS, Symbols, check_sizes, is_small, type_of
from .use import Known, Result, Use

UNFIT = (Unmapped, MonographError, AttributeError, ValueError, IndexError, TypeError, KeyError)
"""What a handler raises for a use that it is not made for."""
BRANCHES = {"then_branch", "else_branch"}
_A = onnx.AttributeProto
CONSTANTS = {
    "value": _A.TENSOR,
    "sparse_value": _A.SPARSE_TENSOR,
    "value_float": _A.FLOAT,
    "value_floats": _A.FLOATS,
    "value_int": _A.INT,
    "value_ints": _A.INTS,
    "value_string": _A.STRING,
    "value_strings": _A.STRINGS,
}
"""What a Constant may hold, and of which type."""


class Importer:
    """One translation.

    left: nodes that stay foreign, with the reason, by name. equal: symbols, and what they are: the file is read anew.
    keep: operators of the standard that stay foreign though they have a form.
    """

    def __init__(self, file: OnnxFile, sizes: Sizes | None = None, keep: Collection[str] = ()) -> None:
        self.file, self.keep = file, keep
        self.graph = Graph(file.model.graph.name or "model")
        self.sizes = sizes or Sizes({}, ())
        self.symbols = Symbols(self.sizes.bound)
        self.inference = Inference(file, self.symbols)
        self.values: dict[str, Value] = {}
        self.knowns: dict[str, Known] = {}
        self.tensors: dict[str, Tensor] = dict(file.tensors)
        self.texts = {t.name: t for t in file.model.graph.initializer if t.data_type == onnx.TensorProto.STRING}
        self.weights: dict[str, Tensor] = {}
        self.constants: set[str] = set()
        self.written: set[str] = set()
        self.left: dict[str, str] = {}
        self.equal: dict[str, DimLike] = {}
        self.outputs = [v.name for v in file.model.graph.output]
        own = file.model.graph
        self.read = {*self.outputs, *(n for node in own.node for n in reads(node))}
        self.read.update(n for node in every_node(own) for n in node.input)
        self.raised = {node.input[0] for node in own.node if node.op_type == "Exp" and node.input}

    def run(self) -> tuple[Graph, Weights]:
        """The graph and its weights. Raises OnnxFileError, and Equal where sizes must be taken to be one."""
        own = self.file.model.graph
        types = self._inputs(self.symbols)
        if any(t.symbols - sources(types).keys() for t in types.values()):
            self.symbols = self.inference.symbols = Symbols(self.sizes.bound, expressions=False)
            types = self._inputs(self.symbols)
        for name, type in types.items():
            self.sizes.declare(type.shape)
            self.values[name] = self.graph.input(name, type)
        with building(self.graph):
            self.nodes(shown_first(own.node))
            for v in own.output:
                self.graph.output(v.name, self._output(v))
        self._drop_unread()
        set_starts(self.graph, self.written)
        return self.graph, Weights(self.weights, str(self.file.path))

    def _inputs(self, symbols: Symbols) -> dict[str, TensorType]:
        """The types of the inputs. Raises OnnxFileError."""
        found: dict[str, TensorType] = {}
        for v in self.file.model.graph.input:
            if v.name in self.tensors or v.name in self.texts:
                continue  # Before version 4 of the format, initializers are inputs too.
            place = f"{self.file.path}: input {v.name}"
            type = type_of(v.type, symbols, place)
            if type is None:
                raise OnnxFileError("does not say its element type and its rank", place=place)
            check_sizes(type, place)
            found[v.name] = type
        return found

    def _output(self, v: onnx.ValueInfoProto) -> Value:
        value = self.value(v.name)
        said = v.type.tensor_type
        place = f"{self.file.path}: output {v.name}"
        if said.elem_type and said.elem_type != ELEMENTS[value.dtype]:
            raise OnnxFileError(f"is said to be of type {said.elem_type}, but is {value.type}", place=place)
        if said.HasField("shape") and len(said.shape.dim) != value.rank:
            raise OnnxFileError(f"is said to have rank {len(said.shape.dim)}, but is {value.type}", place=place)
        return value

    def _drop_unread(self) -> None:
        """Erase nodes that nothing reads, and parameters with them."""
        for node in self.graph.reversed():
            if not any(v.uses or self.graph.is_output(v) for v in node.outputs):
                self.graph.erase(node)
        for name, v in list(self.graph.params.items()):
            if not v.uses and not self.graph.is_output(v):
                del self.graph.params[name], self.weights[name]

    # -- names ---------------------------------------------------------------------------------------------------

    def value(self, name: str) -> Value:
        """The value of a name; numbers that are known become constants, initializers parameters."""
        if name not in self.values:
            if name in self.knowns:
                self.values[name] = self.knowns[name].value()
            elif name in self.tensors:
                self.values[name] = self._stored(name, self.tensors[name])
            else:
                self.values[name] = self._text(name)
        return self.values[name]

    def _stored(self, name: str, tensor: Tensor) -> Value:
        array = self.array_of(name)
        few = array is not None and (array.size == 1 or array.dtype.kind in "iub")
        if array is not None and few and array.size and not np.isnan(array.astype(np.float64)).any():
            exact = tensor.dtype.numpy.kind in "iub" or tensor.dtype.is_float
            if exact:
                return constant(value=array.tolist(), dtype=tensor.dtype)
        path = name
        while path in self.outputs or path in self.weights:
            path = f"{path}.value"
        if name in self.constants:
            self.written.add(path)
        return self.parameter(path, tensor)

    def parameter(self, path: str, tensor: Tensor, type: TensorType | None = None) -> Value:
        """A parameter of the graph with its weight."""
        self.weights[path] = tensor
        return self.graph.param(path, type or tensor.type.decoded)

    def _text(self, name: str) -> Value:
        attribute = onnx.helper.make_attribute("value", self.texts[name])
        node = onnx.NodeProto(op_type="Constant", output=[name], attribute=[attribute])
        type = TensorType(DType.text, tuple(self.texts[name].dims))
        made = self._add_foreign(node, 13, [], [], [type])
        return made[0]

    def type_of(self, name: str) -> TensorType:
        """The type of a name, without making a value of it."""
        if name in self.values:
            return self.values[name].type
        if name in self.knowns:
            return TensorType(self.knowns[name].dtype, self.knowns[name].array.shape)
        return self.tensors[name].type.decoded if name in self.tensors else self.value(name).type

    def array_of(self, name: str) -> Array | None:
        """The numbers of a small initializer or constant; None where they are not known."""
        known = self.knowns.get(name)
        if known is not None:
            return known.array.astype(known.dtype.numpy) if known.numbers else None
        tensor = self.tensors.get(name)
        if tensor is None or int(np.prod(tensor.shape)) > MOST:
            return None
        return tensor.numpy()

    def known_of(self, name: str) -> Known | None:
        """What is known of the integers or truth values of a name."""
        if name not in self.knowns and name in self.tensors:
            array = self.array_of(name)
            if array is None or array.dtype.kind not in "iub":
                return None
            numbers = np.empty(array.shape, object)
            numbers[...] = array.astype(object)
            self.knowns[name] = Known(numbers, self.tensors[name].dtype)
        return self.knowns.get(name)

    def tensor(self, t: onnx.TensorProto) -> Array:
        """The numbers of a tensor in an attribute."""
        return read_initializer(t, self.file.path).numpy()

    @staticmethod
    def dtype(array: Array) -> DType:
        return DType.of(array.dtype)

    def define(self, name: str, result: Value | Known | Tensor) -> None:
        """Give a name its meaning; one of an earlier branch goes."""
        for table in (self.values, self.knowns, self.tensors, self.texts):
            table.pop(name, None)
        if isinstance(result, Value):
            self.values[name] = result
        elif isinstance(result, Known):
            self.knowns[name] = result
        else:
            self.tensors[name] = result

    # -- nodes ---------------------------------------------------------------------------------------------------

    def nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            with self.graph.at(None, written_at(node, str(self.file.path))):
                self.node(node)

    def node(self, node: onnx.NodeProto) -> None:
        """Translate one node: as numbers that are known, as primitives, or as a foreign node."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        use = Use(self, node, self.file.opsets.get(domain, 1))
        if domain == "" and node.op_type == "Constant":
            self._constant(use)
            return
        if domain == "" and node.op_type == "If" and not self.file.opaque and self._chosen(use):
            return
        result: Result | None = None
        last = next(self.graph.reversed(), None)
        why = f"{domain}.{node.op_type} has no form in the IR".lstrip(".")
        if domain == "" and node.op_type in FOLDS:
            result = self._folded(use)
        handler = None if self._kept(node) else HANDLERS.get((domain, node.op_type))
        if result is None and handler is not None:
            try:
                result = handler(use)
                if over := use.overlooked():
                    raise Unmapped(f"{over} is not known here")
            except OnnxFileError:
                raise
            except UNFIT as e:
                why = str(e).splitlines()[0] if str(e) else type(e).__name__
                result = None
                self._undo(last, node)
                self._met(use)
        if result is None:
            self.equal |= {e.name: e.value for e in counts_of(use) if e.name not in self.equal}
            self.left[node.name or next(iter(node.output), node.op_type)] = why
            result = self._foreign(use)
        made = [result] if isinstance(result, (Value, Known)) else list(result)
        for name, part in zip(node.output, made, strict=False):
            if name and part is not None:
                self.define(name, part)
                if isinstance(part, Value):
                    check_sizes(part.type, self.place(node))
        given = [i < len(made) and made[i] is not None for i in range(len(node.output))]
        unread = [n not in self.read for n in node.output]
        lost = next((n for n, *there in zip(node.output, given, unread, strict=True) if n and not any(there)), None)
        if lost is not None:
            raise OnnxFileError(f"has an output {lost!r} that its operator does not give", place=self.place(node))

    def _kept(self, node: onnx.NodeProto) -> bool:
        """Whether a node stays: of dequantizing that of weights, whose codes a kernel reads, if quantizing does not; of
        logarithms those that are no softmax."""
        if node.op_type == "DequantizeLinear" and not (node.input[0] in self.tensors or "QuantizeLinear" in self.keep):
            return False
        return node.op_type in self.keep and not (node.op_type == "LogSoftmax" and node.output[0] in self.raised)

    def _met(self, use: Use) -> None:
        """Note what must be equal for a node to be read as more than a foreign one: others show further down."""
        shapes = [self.type_of(n).shape for n in use.node.input if n]
        wanted = use.known(1) if use.node.op_type == "Reshape" else None
        try:
            self.sizes.met(use.node.op_type, shapes, use.attribute("axis", 0) if use.node.op_type == "Concat" else 0)
            if wanted is not None:
                self.sizes.reshaped(shapes[0], tuple(wanted.flat))
        except Equal as e:
            self.equal.setdefault(e.name, e.value)

    def place(self, node: onnx.NodeProto) -> str:
        return place_of(self.file.path, node)

    def _undo(self, last: Node | None, reader: onnx.NodeProto) -> None:
        """Erase the nodes behind `last`: what was made for a node before it turned out that more is not known."""
        gone: set[Node] = set()
        for made in self.graph.reversed():
            if made is last:
                break
            gone.add(made)
            self.graph.erase(made)
        for name in reader.input:
            if name in self.values and self.values[name].producer in gone:
                del self.values[name]

    def _folded(self, use: Use) -> Result | None:
        try:
            found = FOLDS[use.node.op_type](use)
        except (*UNFIT, ArithmeticError):
            return None
        parts = [found] if isinstance(found, Known) else found
        self.sizes.settle(k.array for k in parts)
        return found if all(k.array.size <= MOST and all(map(is_small, k.flat)) for k in parts) else None

    def _constant(self, use: Use) -> None:
        a, name = self._only_attribute(use.node), use.node.output[0]
        self.constants.add(name)
        if a.name == "value" and a.t.data_type == onnx.TensorProto.STRING:
            self.texts[name] = a.t
        elif a.name == "value":
            self.define(name, read_initializer(a.t, self.file.path))
        elif a.name == "sparse_value":
            self.define(name, read_sparse(a.sparse_tensor, self.file.path))
        elif a.name in ("value_string", "value_strings"):
            texts = [a.s] if a.name == "value_string" else list(a.strings)
            array = np.array([t.decode("utf-8", "replace") for t in texts], object)
            self.texts[name] = numpy_helper.from_array(array if a.name == "value_strings" else array.reshape(()), name)
        else:
            given: Any = onnx.helper.get_attribute_value(a)
            kind = np.int64 if a.name in ("value_int", "value_ints") else np.float32
            self.define(name, ArrayTensor(np.array(given, kind)))

    def _only_attribute(self, node: onnx.NodeProto) -> onnx.AttributeProto:
        """What a Constant holds. Raises OnnxFileError."""
        if len(node.attribute) != 1 or CONSTANTS.get(node.attribute[0].name) != node.attribute[0].type:
            said = [f"{a.name} ({onnx.AttributeProto.AttributeType.Name(a.type)})" for a in node.attribute]
            what = f"has attributes {', '.join(said) or 'none'}, expected one value of a tensor, numbers or text"
            raise OnnxFileError(what, place=self.place(node))
        if len(node.output) != 1 or not node.output[0] or any(node.input):
            what = f"has {len(node.input)} inputs and {len(node.output)} outputs, expected 0 and 1"
            raise OnnxFileError(what, place=self.place(node))
        return node.attribute[0]

    def _chosen(self, use: Use) -> bool:
        """Translate the branch of an If whose condition is known; gives whether it is. Raises OnnxFileError."""
        branches = {a.name: a.g for a in use.node.attribute if a.name in BRANCHES and a.HasField("g")}
        counts = {name: len(g.output) for name, g in branches.items()}
        if set(counts) != BRANCHES or set(counts.values()) != {len(use.node.output)}:
            what = f"has branches with outputs {counts} for {len(use.node.output)} outputs of its own"
            raise OnnxFileError(what, place=self.place(use.node))
        known = use.known(0)
        if known is None or not known.numbers or known.array.size != 1:
            return False
        branch = branches["then_branch" if known.flat[0] else "else_branch"]
        for t in branch.initializer:
            self.define(t.name, read_initializer(t, self.file.path))
        self.read.update(v.name for v in branch.output)
        self.nodes(branch.node)
        for name, v in zip(use.node.output, branch.output, strict=True):
            self.define(name, self.knowns[v.name] if v.name in self.knowns else self.value(v.name))
        return True

    # -- foreign -------------------------------------------------------------------------------------------------

    def _foreign(self, use: Use) -> Result:
        node = use.node
        inputs = [n for n in node.input if n]
        captured = list(dict.fromkeys(n for g in subgraphs(node) for n in free(g)))
        given = {n: self.value(n) for n in (*inputs, *captured)}
        data: dict[str, onnx.TensorProto] = {}
        for n in inputs:
            array = self.array_of(n)
            if array is not None:
                data[n] = numpy_helper.from_array(array, n)
        types = self.inference.types(node, use.version, {n: v.type for n, v in given.items()}, data)
        shapes = sizes_of(use, [given[n].shape for n in inputs])
        for i, shape in enumerate(shapes):
            if shape is not None and i < len(types) and len(shape) == types[i].rank:
                types[i] = TensorType(types[i].dtype, shape)
        operands = [given[n] if n else None for n in node.input]
        made = self._add_foreign(node, use.version, operands, captured, types, [given[n] for n in captured])
        rest = iter(made)
        return [next(rest) if n else None for n in node.output]

    def _add_foreign(
        self,
        node: onnx.NodeProto,
        version: int,
        inputs: Sequence[Value | None],
        captures: Sequence[str],
        types: Sequence[TensorType],
        captured: Sequence[Value] = (),
    ) -> tuple[Value, ...]:
        attributes: Mapping[str, Any] = {
            "domain": "" if node.domain == "ai.onnx" else node.domain,
            "name": node.op_type,
            "version": version,
            "fields": fields_of(node),
            "types": tuple((t.dtype, t.shape) for t in types),
            "absent": tuple(i for i, v in enumerate(inputs) if v is None),
            "skipped": tuple(i for i, n in enumerate(node.output) if not n and any(node.output[i:])),
            "captures": tuple(captures),
        }
        operands = [v for v in (*inputs, *captured) if v is not None]
        return self.graph.add(onnx_node.op, operands, dict(attributes))
