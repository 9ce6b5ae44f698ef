"""An exported program, node by node, as a graph and its weights."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, cast

import torch

from ...ir import Graph, Init, Value, building, ops
from ...ir.errors import MonographError
from ...ir.graph import NOWHERE, Location
from ...ir.init import FIXED, FROZEN
from ...ir.tensors import Tensor
from ...ir.types import TensorType
from ...ir.weights import Weights
from ..starts import set_starts
from .activations import ACTIVATIONS
from .call import Call, Complex, Table
from .complexes import COMPLEX, is_complex, of_pairs
from .creation import CREATION
from .dims import Dims, least_values, symbol_names
from .elementwise import ELEMENTWISE
from .errors import NotImportableError, UnknownFormError
from .indexing import INDEXING
from .layers import LAYERS
from .names import output_names, place_of
from .recurrent import RECURRENT
from .reductions import REDUCTIONS
from .shapes import SHAPES
from .sorting import SORTING
from .spatial import SPATIAL
from .tensors import LiveTensor, dtype_of, written_out

TABLE: Table = {
    **ELEMENTWISE,
    **ACTIVATIONS,
    **CREATION,
    **SHAPES,
    **INDEXING,
    **REDUCTIONS,
    **LAYERS,
    **SPATIAL,
    **SORTING,
    **RECURRENT,
}
"""What each ATen op is in the IR."""

KNOWN = TABLE.keys() | COMPLEX.keys()
"""Ops with a handler, of real numbers or of complex ones."""

CHECKS = frozenset(
    {
        "aten._assert_tensor_metadata.default",
        "aten._assert_scalar.default",
        "aten._assert_async.msg",
        "aten.sym_constrain_range_for_size.default",
        "aten.sym_constrain_range.default",
    }
)
"""Ops that compute nothing: they look whether sizes and types are those that the program was made for."""

_PLACEMENT = frozenset({"layout", "device", "pin_memory", "memory_format", "non_blocking", "generator", "implicit"})
"""Arguments that say where elements lie, not what they are."""

_WRITTEN_OUT = 4096
"""Elements of a constant that stands in the graph; a larger one is a fixed parameter."""

_HANDLED = frozenset({"PARAMETER", "BUFFER", "CONSTANT_TENSOR", "USER_INPUT", "TOKEN"})
"""Kinds of inputs that are known. A token only orders checks that have an effect, see `_called_op`."""


class Importer:
    """One import. `failures` are lines with what has no counterpart and where it is."""

    def __init__(self, program: Any, name: str, names: Mapping[str, str]) -> None:
        self.program, self.graph = program, Graph(name)
        sizes = {n.name: tuple(n.meta["val"].shape) for n in self.user_inputs() if hasattr(n.meta.get("val"), "shape")}
        shown = {
            str(s)
            for shape in sizes.values()
            for d in shape
            if not isinstance(d, int)
            for s in d.node.expr.free_symbols
        }
        self.dims = Dims({**symbol_names(sizes), **names}, least_values(program.range_constraints), shown)
        self.values: dict[Any, Any] = {}
        self.lost: set[Any] = set()
        self.learns: set[Any] = set()
        self.failures: dict[str, int] = {}
        self.tensors: dict[str, Tensor] = {}
        self.untyped: dict[str, str] = {}

    def run(self) -> tuple[Graph, Weights]:
        """The graph and the weights. Raises NotImportableError that lists everything without a counterpart."""
        self._check_signature()
        self._declare_state()
        self._declare_inputs()
        with building(self.graph):
            read = _read(self.program.graph)
            for node in self.program.graph.nodes:
                if node.op == "call_function" and node in read:
                    self._node(node)
        self._outputs()
        set_starts(self.graph)
        if self.failures:
            lines = [f"{line}{f' ({n} times)' if n > 1 else ''}" for line, n in self.failures.items()]
            what = (
                f"{len(lines)} of its calls and tensors {'have' if len(lines) > 1 else 'has'} no counterpart in the IR"
            )
            raise NotImportableError(what, place=self.graph.name, details=lines)
        return self.graph, Weights(self.tensors, place=self.graph.name)

    # -- parameters, buffers, inputs, outputs --------------------------------------------------------------------

    def _check_signature(self) -> None:
        signature = self.program.graph_signature
        lines = [f"input {s.arg.name} is a {s.kind.name}" for s in signature.input_specs if s.kind.name not in _HANDLED]
        for s in signature.output_specs:
            if s.kind.name not in ("USER_OUTPUT", "LOSS_OUTPUT", "TOKEN"):
                lines.append(f"{s.target or s.arg.name} is changed by the call ({s.kind.name})")
        if lines:
            hint = "load it in evaluation mode, module.eval(), without caches and counters that it keeps"
            raise NotImportableError(
                "it has effects beside its outputs", place=self.graph.name, details=lines, hint=hint
            )

    def user_inputs(self) -> list[Any]:
        """The nodes of what the program is called with."""
        user = set(self.program.graph_signature.user_inputs)
        return [n for n in self.program.graph.nodes if n.op == "placeholder" and n.name in user]

    def _declare_state(self) -> None:
        """All parameters and buffers in the order of the module; a tied one once, under its first name."""
        signature, state = self.program.graph_signature, self.program.state_dict
        buffers = {s.target for s in signature.input_specs if s.kind.name == "BUFFER"}
        first: dict[int, str] = {}
        for path, tensor in state.items():
            if id(tensor) in first:
                continue
            first[id(tensor)] = path
            kind = FIXED if path in buffers else None if tensor.requires_grad else FROZEN
            try:
                self._param(path, tensor, kind)
            except UnknownFormError as e:
                self.untyped[path] = e.what
        self.placed = {path: first[id(tensor)] for path, tensor in state.items()}

    def _param(self, path: str, tensor: Any, kind: str | None) -> Value:
        self.tensors[path] = LiveTensor(tensor)
        return self.graph.param(path, self.tensors[path].type, None if kind is None else Init(kind))

    def _declare_inputs(self) -> None:
        specs = {s.arg.name: s for s in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            try:
                self._declare(node, spec)
            except UnknownFormError as e:
                self.lost.add(node)
                kind = "input" if spec.kind.name == "USER_INPUT" else spec.kind.name.lower().replace("_", " ")
                reader = next((n for n in node.users if _called_op(n) not in CHECKS), None)
                line = "" if reader is None else f", read by {self._line(reader, place_of(reader), '')}"
                self.failures[f"{kind} {spec.target or node.name}{line}: {e.what}"] = 1

    def _declare(self, node: Any, spec: Any) -> None:
        if spec.kind.name == "USER_INPUT":
            self._input(node, spec)
        elif spec.target in self.placed:
            path = self.placed[spec.target]
            if path in self.untyped:
                raise UnknownFormError(self.untyped[path])
            held = self.program.state_dict[spec.target]
            self.values[node] = self._held(self.graph.params[path], held)
            if spec.kind.name == "PARAMETER" and held.requires_grad:
                self.learns.add(node)
        elif spec.kind.name == "TOKEN":
            self.values[node] = None
        elif node.users:
            self.values[node] = self._constant(spec.target, self.program.constants[spec.target])

    def _held(self, param: Value, tensor: Any) -> Value | Complex:
        """What a parameter of the graph is to the program: of pairs [.., 2] complex numbers."""
        if not tensor.is_complex():
            return param
        with building(self.graph), self.graph.at(None, NOWHERE):
            return of_pairs(param)

    def _input(self, node: Any, spec: Any) -> None:
        made = node.meta.get("val")
        if type(spec.arg).__name__ == "ConstantArgument":
            self.values[node] = spec.arg.value
            return
        if not hasattr(made, "shape"):
            what = f"input {node.name} is a number that varies ({made})"
            raise NotImportableError(what, place=self.graph.name, hint="give it as a tensor")
        if made.dtype.is_complex:
            raise UnknownFormError(f"{made.dtype}: take real numbers [.., 2], and torch.view_as_complex of them")
        type_ = TensorType(dtype_of(made.dtype), self.dims.shape(made.shape))
        self.values[node] = self.graph.input(node.name, type_)
        if type_.dtype.is_float:
            self.learns.add(node)

    def _constant(self, path: str, tensor: Any) -> Value | Complex:
        """A tensor that is in no checkpoint: written out, or a fixed parameter if it is large."""
        if tensor.numel() > _WRITTEN_OUT or tensor.numel() == 0:
            return self._held(self._param(path, tensor, FIXED), tensor)
        if tensor.is_complex():
            real, imag = (self._constant(path, t) for t in (tensor.real, tensor.imag))
            return Complex(cast("Value", real), cast("Value", imag))
        with building(self.graph), self.graph.at(None, NOWHERE):
            return ops.constant(value=written_out(tensor), dtype=dtype_of(tensor.dtype))

    def _outputs(self) -> None:
        specs = self.program.graph_signature.output_specs
        (last,) = (n for n in self.program.graph.nodes if n.op == "output")
        names = output_names(self.program.call_spec.out_spec)
        given = [(s, n) for s, n in zip(specs, last.args[0], strict=True) if s.kind.name != "TOKEN"]
        for name, (spec, node) in zip(names, given, strict=True):
            if type(spec.arg).__name__ == "ConstantArgument" or node in self.lost:
                continue
            value = self.values[node]
            if isinstance(value, Complex):
                line = self._line(node, place_of(node), "it is complex: give torch.view_as_real of it")
                self.failures[f"output {name} of {line}"] = 1
                continue
            if not isinstance(value, Value):
                raise NotImportableError(f"output {name} is the size {value}, not a tensor", place=self.graph.name)
            self.graph.output(name, value)

    # -- nodes ---------------------------------------------------------------------------------------------------

    def _node(self, node: Any) -> None:
        read = list(node.all_input_nodes)
        if _called_op(node) in CHECKS:
            self.values[node] = (None,)
            return
        if any(n in self.lost for n in read):
            self.lost.add(node)
            computes = node.target is not operator.getitem and hasattr(node.target, "_schema")
            if computes and _called_op(node) not in KNOWN:
                self._fail(node, place_of(node), "")
            return
        if any(n in self.learns for n in read):
            self.learns.add(node)
        place = place_of(node)
        try:
            self.values[node] = self._made(node, place)
        except MonographError as e:
            self.lost.add(node)
            self._fail(node, place, "" if e.what.startswith("no op") else e.what)

    def _made(self, node: Any, place: Location) -> Any:
        if node.target is operator.getitem:
            found = self.values[node.args[0]][node.args[1]]
            if found is None and node.users and _called_op(node.args[0]) not in CHECKS:
                raise UnknownFormError(f"its result {node.args[1]} has no counterpart")
            return found
        made = node.meta.get("val")
        if not hasattr(made, "shape") and not isinstance(made, (tuple, list)):
            return self.dims.of(made)  # Arithmetic on sizes: what PyTorch has made of it.
        if str(node.target) not in KNOWN:
            raise UnknownFormError("no op of the IR")
        call = Call(self.graph, node, self.dims, node in self.learns)
        with self.graph.at(None, place):
            return self._checked(call, self._called(call))

    def _called(self, call: Call) -> Any:
        """Arguments in the order of the schema, as far as they are given, but for those that only place elements."""
        node = call.node
        given = list(node.args)
        schema = node.target._schema.arguments
        found = [self._argument(a) for a, s in zip(given, schema, strict=False) if s.name not in _PLACEMENT]
        rest = [s for s in schema[len(given) :] if s.name not in _PLACEMENT and s.name != "dtype"]
        last = max((i for i, s in enumerate(rest) if s.name in node.kwargs), default=-1)
        for s in rest[: last + 1]:
            found.append(self._argument(node.kwargs.get(s.name, s.default_value)))
        paired = any(call.complex) or is_complex(found)
        handler = (COMPLEX if paired else TABLE).get(str(node.target))
        if handler is None:
            raise UnknownFormError(f"it is not known of {'complex' if paired else 'real'} numbers")
        return handler(call, *found)

    def _argument(self, x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [self._argument(v) for v in cast("list[Any]", x)]
        return self.values[x] if hasattr(x, "all_input_nodes") else x

    def _checked(self, call: Call, made: Any) -> Any:
        """What a handler made, if it has the types that PyTorch says."""
        values = cast("tuple[Value | Complex | None, ...]", made if isinstance(made, tuple) else (made,))
        for value, expected, paired in zip(values, call.types, call.complex, strict=False):
            parts = value.parts if isinstance(value, Complex) else () if value is None else (value,)
            if parts and len(parts) != 1 + paired:
                raise UnknownFormError(f"gives {'real' if paired else 'complex'} numbers here, others in PyTorch")
            for v in parts:
                if v.type != expected:
                    raise UnknownFormError(f"gives {v.type} here, {expected} in PyTorch")
        return values if isinstance(made, tuple) else made

    def _fail(self, node: Any, place: Location, why: str) -> None:
        line = self._line(node, place, why)
        self.failures[line] = self.failures.get(line, 0) + 1

    def _line(self, node: Any, place: Location, why: str) -> str:
        """An op with its place, and what is the matter with it."""
        op = _called_op(node)
        if op.startswith("prims.") and node.meta.get("original_aten") is not None:
            op = str(node.meta["original_aten"])  # What it is a part of.
        line = f"{op} at {place.file}:{place.line}" if place.file else op
        line += f" in {place.scope}" if place.scope else ""
        return f"{line}: {why}" if why and why != "no op of the IR" else line


def _read(graph: Any) -> set[Any]:
    """What the outputs are made of; the rest computes what only checks look at."""
    waiting, found = [n for n in graph.nodes if n.op == "output"], set[Any]()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _called_op(node: Any) -> str:
    """The op of a node as PyTorch prints it; of a call whose effects are ordered by tokens the op that it calls, and of
    one of several results the op that gives them."""
    if node.target is operator.getitem:
        return _called_op(node.args[0])
    ordered = node.target is torch.ops.higher_order.with_effects
    return str(node.args[1] if ordered else node.target)
