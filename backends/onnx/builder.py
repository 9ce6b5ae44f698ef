"""The `op` namespace that ONNX lowerings write with: nodes, constants, symbolic shapes, initializers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir

from ...frontends.onnx.nested import every_node
from ...ir.errors import LoweringError
from ...ir.graph import NOWHERE, Location
from ...ir.types import DimLike, DType, Shape, TensorType
from ...ir.weights import Mapped, Tensor
from .dims import Dims
from .foreign import add_foreign, captured, placed_node
from .tensors import ELEMENT_TYPES, WeightTensor, onnx_shape

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own ops."""

_SWAP = [1, 0]


class UnavailableError(LoweringError):
    """An ONNX op does not exist in the opset that is being written; the caller lowers the body instead."""


class Handle:
    """One ONNX value while a graph is built; `type` is its IR type, `path` the parameter it is, if it is one."""

    __slots__ = ("_type", "path", "value")

    def __init__(self, value: onnx_ir.Value, type: TensorType | None, path: str = "") -> None:
        self.value, self.path = value, path
        self._type: TensorType | None = None
        if type is not None:
            self.stamp(type)

    def stamp(self, type: TensorType) -> None:
        """Note the type, here and on the ONNX value; the first one stays."""
        if self._type is None:
            self._type = type
            self.value.type = onnx_ir.TensorType(ELEMENT_TYPES[type.dtype])

    @property
    def type(self) -> TensorType:
        if self._type is None:
            raise LoweringError(f"the type of {self.value.name} is not known here: give `types=` where it is made")
        return self._type

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def known(self) -> bool:
        return self._type is not None

    def __repr__(self) -> str:
        return f"{self.value.name}: {self._type or '?'}"


class Builder:
    """Makes ONNX nodes: `op.MatMul(x, w)`. Equal nodes are made once, so what layers share is computed once.

    op.<OpType>(*inputs, outputs=1, domain="", types=(), **attributes) gives one handle, or a tuple for outputs > 1.
    None inputs are absent optional ones; None attributes are left out; `types` are the IR types of the results,
    needed only where a result is given on to a helper that reads `.type`. Raises UnavailableError for an op of the
    standard domain that `opset` does not have.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx_ir.Node] = []
        self.inputs: dict[str, Handle] = {}
        self.initializers: dict[str, Handle] = {}
        self.domains: set[str] = set()
        self.versions: dict[str, int] = {}
        self._captured: dict[onnx_ir.Node, list[onnx_ir.Value]] = {}
        self._numbered: dict[tuple[Any, ...], tuple[Handle, ...]] = {}
        self._constants: dict[tuple[Any, ...], Handle] = {}
        self._reshaped: dict[Handle, Handle] = {}
        self._names: dict[str, int] = {}
        self._location, self._origin = NOWHERE, ""
        self._dims = Dims(self)

    # -- values that no node makes -----------------------------------------------------------------------------

    def input(self, name: str, type: TensorType) -> Handle:
        """A graph input."""
        self._names[name] = 1
        self.inputs[name] = Handle(onnx_ir.Value(name=name), type)
        return self.inputs[name]

    def reserve(self, name: str) -> None:
        """Keep a name (of a graph output) from being given to anything else."""
        self._names.setdefault(name, 1)

    def initializer(self, name: str, tensor: Tensor) -> Handle:
        """A weight whose bytes are read when the model is written; one per name."""
        if name not in self.initializers:
            self._names[name] = 1
            value = onnx_ir.Value(name=name, const_value=WeightTensor(name, tensor))
            self.initializers[name] = Handle(value, tensor.type, name)
            value.shape = onnx_shape(tensor.type.shape, {})
        return self.initializers[name]

    def constant(self, array: np.ndarray[Any, Any]) -> Handle:
        """A small array written into the file; equal ones are shared."""
        array = np.asarray(array)
        key = (array.dtype.str, str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            type = TensorType(DType.of(array.dtype), array.shape)
            name = self.unique("constant")
            tensor = onnx_ir.Tensor(array, dtype=ELEMENT_TYPES[type.dtype], name=name)
            value = onnx_ir.Value(name=name, const_value=tensor, shape=onnx_ir.Shape(array.shape))
            self._constants[key] = self.initializers[name] = Handle(value, type)
        return self._constants[key]

    # -- shapes ------------------------------------------------------------------------------------------------

    def dim(self, d: DimLike) -> Handle:
        """A dimension as an i64 scalar. Raises LoweringError if no input determines one of its symbols."""
        return self._dims.scalar(d)

    def shape(self, dims: Sequence[DimLike]) -> Handle:
        """Dimensions as a 1-D i64 vector."""
        return self._dims.vector(dims)

    def learn(self, d: DimLike, h: Handle, axis: int) -> None:
        """A symbol that no input shows is the size of an axis of a result."""
        self._dims.learn(d, h, axis)

    def element_type(self, dtype: DType) -> int:
        """The number ONNX has for an element type."""
        return int(ELEMENT_TYPES[dtype])

    def reshape(self, x: Handle, shape: Shape) -> Handle:
        """x in another shape: nothing if it has it, else one node, however many reshapes came before."""
        x = x if x.shape == tuple(shape) else self._reshaped.get(x, x)
        if x.shape == tuple(shape):
            return x
        type = TensorType(x.dtype, tuple(shape))
        added, removed = ones_between(shape, x.shape), ones_between(x.shape, shape)
        if added is not None:
            y = self.Unsqueeze(x, self.constant(np.array(added, np.int64)), types=[type])
        elif removed is not None:
            y = self.Squeeze(x, self.constant(np.array(removed, np.int64)), types=[type])
        else:
            target, allow_zero = self._target(x, shape)
            y = self.Reshape(x, target, allowzero=allow_zero or None, types=[type])
        self._reshaped.setdefault(y, x)
        return y

    def _target(self, x: Handle, shape: Shape) -> tuple[Handle, int]:
        """(target of a Reshape, whether a 0 in it means zero): a constant where that is safe for empty tensors too."""
        if all(isinstance(d, int) for d in shape):
            return self.constant(np.array(shape, np.int64)), int(0 in shape)
        copied = [i < len(x.shape) and x.shape[i] == d and not isinstance(d, int) for i, d in enumerate(shape)]
        rest = [i for i, d in enumerate(shape) if not isinstance(d, int) and not copied[i]]
        # With a -1 the other sizes must not be able to multiply to zero, or its meaning is lost.
        inferred = len(rest) == 1 and not any(copied)
        if 0 in shape or (rest and not inferred):
            return self.shape(shape), 1
        numbers = [0 if copied[i] else d if isinstance(d, int) else -1 for i, d in enumerate(shape)]
        return self.constant(np.array(numbers, np.int64)), 0

    def transposed(self, w: Handle) -> Handle:
        """A matrix [a, b] as [b, a]; a weight that is read in no other way is stored that way (see `finish`)."""
        type = TensorType(w.dtype, w.shape[::-1])
        turned: Handle = self.Transpose(w, perm=_SWAP, types=[type])
        turned.path = w.path
        return turned

    # -- nodes -------------------------------------------------------------------------------------------------

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[:1].isupper():
            raise AttributeError(f"Builder has no {op_type!r}")

        def make(*inputs: Handle | None, **options: Any) -> Any:
            return self.node(op_type, inputs, **options)

        return make

    def Identity(self, x: Handle) -> Handle:
        """x itself: no node is made."""
        return x

    def node(
        self,
        op_type: str,
        inputs: Sequence[Handle | None],
        *,
        outputs: int = 1,
        domain: str = "",
        types: Sequence[TensorType | None] = (),
        **attributes: Any,
    ) -> Handle | tuple[Handle, ...]:
        """Add a node, or find the equal one that is there. Raises UnavailableError."""
        if not domain:
            self._check_available(op_type)
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        attributes = {k: v for k, v in attributes.items() if v is not None}
        key = (domain, op_type, outputs, _frozen(sorted(attributes.items())), *map(id, given))
        if key not in self._numbered:
            self._numbered[key] = self._make(op_type, given, outputs, domain, attributes)
        handles = self._numbered[key]
        for h, t in zip(handles, types, strict=False):
            if t is not None:
                h.stamp(t)
        return handles[0] if outputs == 1 else handles

    def _make(
        self, op_type: str, inputs: list[Handle | None], outputs: int, domain: str, attributes: dict[str, Any]
    ) -> tuple[Handle, ...]:
        self.domains.add(domain)
        scope = self._scope(inputs)
        name = self.unique(f"{scope}/{op_type}" if scope else op_type)
        results = [onnx_ir.Value(name=self.unique(f"{name}_output{i or ''}")) for i in range(outputs)]
        node = onnx_ir.Node(
            domain,
            op_type,
            [None if h is None else h.value for h in inputs],
            onnx_ir.convenience.convert_attributes(attributes),
            outputs=results,
            name=name,
            metadata_props=self._metadata(),
        )
        self.nodes.append(node)
        return tuple(Handle(v, None) for v in results)

    def foreign(self, xs: Sequence[Handle | None], **attributes: Any) -> Handle | tuple[Handle, ...]:
        """A node of an ONNX file as it was read. Raises LoweringError where the opset has no such form."""
        made = add_foreign(self, xs, attributes)
        return made[0] if len(made) == 1 else made

    def placed(self, node: onnx.NodeProto, known: Mapping[str, Handle]) -> dict[str, Handle]:
        """Add a node as it stands, with values for the names it reads; gives its results by name."""
        self.domains.update(n.domain for n in every_node(onnx.GraphProto(node=[node])))
        inner = {name: self._make("Identity", [known[name]], 1, "", {})[0] for name in captured(node)}
        made = placed_node(node, {name: h.value for name, h in {**known, **inner}.items()})
        made.name = self.unique(node.op_type)
        made.metadata_props.update(self._metadata())
        self._captured[made] = [h.value for h in inner.values()]
        self.nodes.append(made)
        handles = {str(v.name): Handle(v, None) for v in made.outputs if v.name}
        self._numbered["foreign", made.name] = tuple(handles.values())
        return handles

    def _scope(self, inputs: list[Handle | None]) -> str:
        """The module a node belongs to: that of its parameter, or else the layer the user was in."""
        path = next((h.path for h in inputs if h is not None and h.path), "")
        return path.rpartition(".")[0] or self._location.scope

    def _metadata(self) -> dict[str, str]:
        source = f"{self._location}".removesuffix(self._location.scope).strip()
        found = {"op": self._origin, "scope": self._location.scope, "source": source}
        return {k: v for k, v in found.items() if v and v != "?"}

    def _check_available(self, op_type: str) -> None:
        try:
            onnx.defs.get_schema(op_type, self.opset, "")
        except onnx.defs.SchemaError:
            raise UnavailableError(f"opset {self.opset} has no {op_type}") from None

    def unique(self, name: str) -> str:
        """A name that nothing has yet, near the one that is wished."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return self.unique(f"{name}_{count}") if count else name

    @contextlib.contextmanager
    def at(self, location: Location, origin: str) -> Generator[None]:
        """Nodes made in the block carry the user's source line, the layer, and the IR op they come from."""
        saved = self._location, self._origin
        self._location, self._origin = location, origin
        try:
            yield
        finally:
            self._location, self._origin = saved

    def handles(self) -> Iterator[Handle]:
        """All values made so far."""
        yield from self.inputs.values()
        yield from self.initializers.values()
        for handles in self._numbered.values():
            yield from handles

    # -- the end -----------------------------------------------------------------------------------------------

    def finish(self, outputs: dict[str, Handle]) -> dict[str, Handle]:
        """Drop what no output needs and store transposed what is only read transposed; gives the named outputs."""
        named = {name: self._named(name, h) for name, h in outputs.items()}
        live = {h.value for h in named.values()}
        kept: list[onnx_ir.Node] = []
        for node in reversed(self.nodes):
            if any(v in live for v in node.outputs):
                live.update(v for v in node.inputs if v is not None)
                live.update(self._captured.get(node, ()))
                kept.append(node)
            else:
                for i in range(len(node.inputs)):
                    node.replace_input_with(i, None)
        self.nodes = kept[::-1]
        self._store_transposed(live)
        self.initializers = {k: h for k, h in self.initializers.items() if h.value in live}
        return named

    def _named(self, name: str, h: Handle) -> Handle:
        """The handle under the output's name; a copy where the value cannot be renamed, and is not called that."""
        if h.value.producer() is None and h.value.name == name:
            _marks(h.value)["output"] = True
            return h
        if h.value.producer() is None or _marks(h.value).get("output"):
            copy = self._make("Identity", [h], 1, "", {})
            copy[0].stamp(h.type)
            self._numbered["output", name] = copy
            h = copy[0]
        h.value.name = name
        _marks(h.value)["output"] = True
        return h

    def _store_transposed(self, live: set[onnx_ir.Value]) -> None:
        """Replace a weight whose every reader is one Transpose by the transposed weight."""
        gone: set[onnx_ir.Node] = set()
        for name, h in list(self.initializers.items()):
            source = h.value.const_value
            readers = [node for node in h.value.consumers() if node.outputs[0] in live]
            if not isinstance(source, WeightTensor) or h.value not in live or len(readers) != 1:
                continue
            if _marks(h.value).get("output"):
                continue
            node = readers[0]
            if node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != _SWAP:
                continue
            if _marks(node.outputs[0]).get("output"):
                continue
            tensor = source.tensor
            turned = Mapped(tensor, TensorType(tensor.dtype, tensor.type.shape[::-1]), np.transpose)
            new = self.initializer(f"{name}.transposed", turned)
            live.add(new.value)
            live.discard(h.value)
            node.outputs[0].replace_all_uses_with(new.value)
            node.replace_input_with(0, None)
            gone.add(node)
        self.nodes = [node for node in self.nodes if node not in gone]


def _marks(value: onnx_ir.Value) -> dict[str, bool]:
    """What this builder notes on a value."""
    meta: Any = value.meta
    return meta


def _frozen(attribute: Any) -> Any:
    """An attribute as a key: equal keys are equal attributes. What cannot be compared is equal to itself only."""
    if isinstance(attribute, (list, tuple)):
        return tuple(map(_frozen, cast("Sequence[Any]", attribute)))
    if isinstance(attribute, (bool, int, float, str)):
        return type(attribute).__name__, repr(attribute)
    return id(attribute)


def ones_between(long: Sequence[DimLike], short: Sequence[DimLike]) -> list[int] | None:
    """Axes of size 1 to take out of `long` to get `short`, or None if that is not the difference."""
    axes: list[int] = []
    rest = list(short)
    for axis, d in enumerate(long):
        if rest and rest[0] == d:
            rest.pop(0)
        elif d == 1:
            axes.append(axis)
        else:
            return None
    return None if rest else axes
