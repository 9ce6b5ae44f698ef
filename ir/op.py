"""Base class of all ops: signature from `infer`, attribute check, registry, typed builders."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

import numpy as np

from .backward_reads import Saved, Strides, everything
from .builder import place_of
from .canonical import Form
from .errors import MonographError, OpError
from .flow import Links, aligned, links_of_body
from .graph import Attributes, Graph, Location, Node, Operand, Value, building, current_graph
from .ranges import Range, of_body, unknown
from .shard_rules import Cut, Cuts, elementwise, needs_all
from .signature import Signature
from .types import DimLike, TensorType, f32

if TYPE_CHECKING:
    from .layout import Layout

P = ParamSpec("P")
R = TypeVar("R")
OPS: dict[str, Op] = {}


def unmoved(op: Op, *operands: Value | None, **attributes: Any) -> DimLike:
    """No floating-point operations: for ops that move, choose or convert elements, and count integers."""
    return 0


class Op:
    """One operation, everything about it in one class.

    `infer(self, *operands, *, attributes)` is the shape rule and the signature: positional = operands,
    keyword-only = attributes, `= None` = optional operand, `*xs` = any number of operands.
    A composite has `body` (over other ops); a primitive has `numpy`. `torch` and `onnx` lower the op when the
    backend can say it in one go; without them the backend lowers the body.
    """

    commutative: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    """Each element of the output is made of the elements of the operands, broadcast, at its own place."""

    own_dtype: ClassVar[frozenset[str]] = frozenset()
    """Operands of an elementwise op whose dtype is not that of the others."""

    keeps_layout: ClassVar[bool] = False
    """The output lies in memory as the first operand of its shape does, as that of an elementwise op."""

    constant: ClassVar[bool] = False
    """The attribute `value` is the output."""

    reads_encoded: ClassVar[bool] = False
    """Takes encoded weights; every other op reads them through `dequantize`."""

    folds: ClassVar[bool] = True
    """What it makes of parameters may be stored evaluated; not where that would undo an encoding."""

    unresolved: ClassVar[frozenset[str]] = frozenset()
    """Attributes that are given as they are when it runs: their dimensions may be known from its results only."""

    as_typed: ClassVar[bool] = False
    """`numpy` runs on arrays of the types that the graph gives, and on no wider ones."""

    random: ClassVar[bool] = False
    """`torch` takes `training`, a bool that is false in evaluation mode."""

    heavy: ClassVar[bool] = False
    """A primitive that multiplies matrices: too much work to be done twice without need."""

    wide: ClassVar[bool] = False
    """Of 16-bit floats, the body is computed in f32 and its result rounded: what kernels do inside."""

    sensitive: ClassVar[bool] = False
    """16-bit floats spoil it: exponentials, roots, angles, long sums. It runs in f32."""

    total: ClassVar[int | None] = None
    """The output that is the sum of the first two operands: a step of a residual stream."""

    scale_free: ClassVar[bool] = False
    """Of its first operands times a number it makes the same, if its attribute `eps` is times the square of it."""

    adds_up: ClassVar[bool] = False
    """It is the sum of its operand along an axis."""

    rounding: ClassVar[Mapping[str, float]] = {}
    """Operands that may be off by no more than this, in absolute terms: what is exponentiated afterwards."""

    choices: ClassVar[Attributes] = {}
    """Values that a fusion pattern tries for an attribute on which `body` branches; `...` captures any value."""

    canonical: ClassVar[tuple[Form, ...]] = ()
    """Simpler forms of a use of the op, tried in this order."""

    autocast: ClassVar[bool] = False
    """PyTorch's autocast runs `torch` in its own dtype."""

    operator: ClassVar[Callable[..., Any] | None] = None
    """The Python operator that PyTorch overloads for the op: it takes a plain number for a tensor."""

    infer: Callable[..., TensorType | tuple[TensorType, ...]]
    body: Callable[..., Any] | None = None
    numpy: Callable[..., np.ndarray[Any, Any] | tuple[np.ndarray[Any, Any], ...]] | None = None
    torch: Callable[..., Any] | None = None
    onnx: Callable[..., Any] | None = None

    @cached_property
    def name(self) -> str:
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__).lower()

    @cached_property
    def signature(self) -> Signature:
        return Signature(self)

    def _given(self, *operands: Value | None, **attributes: Any) -> Attributes:
        return attributes

    complete: Callable[..., Attributes] = _given
    """Fills in defaults that depend on the operands' types; gives the attributes in their normal form."""

    def _flops_of_body(self, *operands: Value | None, **attributes: Any) -> DimLike:
        if self.body is None:
            return 0
        types = tuple(None if v is None else v.type for v in operands)
        total: DimLike = 0
        for node in expand(self, types, _freeze(attributes)):
            total = total + node.op.flops(*node.operands, **node.attributes)
        return total

    flops: Callable[..., DimLike] = _flops_of_body
    """Floating-point operations of one use; a composite counts its body, a primitive without a rule has none."""

    def _links_of_body(self, *operands: Value | None, **attributes: Any) -> Links:
        """Links through the body; of an elementwise op, where its operands broadcast to.

        Raises OpError for another primitive that does not say what it reads.
        """
        if self.elementwise:
            shapes = [None if v is None else v.shape for v in operands]
            return aligned(shapes, max(len(shape or ()) for shape in shapes))
        if self.body is None:
            raise OpError(f"{self.name} does not say which elements it reads", hint="a primitive needs `links`")
        types = tuple(None if v is None else v.type for v in operands)
        present = [i for i, v in enumerate(operands) if v is not None]
        links = _body_links(self, types, _freeze(attributes))
        return tuple(replace(link, operand=present[link.operand]) for link in links)

    links: Callable[..., Links] = _links_of_body
    """Where each axis of each operand goes; a composite's follow from its body."""

    states: ClassVar[Mapping[str, int]] = {}
    """State of its own: optional operand that brings it (None: zeros) => output that is its next value."""

    state_names: ClassVar[Mapping[str, str]] = {}
    """What each state is called outside: operand => name such as `h`."""

    keys: ClassVar[Mapping[str, str]] = {}
    """Operands [B,T,...] that each of its S queries looks at: operand => what it is called outside, such as `key`."""

    masks: ClassVar[tuple[str, ...]] = ()
    """Operands [..,S,T] that say how much a query is to look at a key."""

    compacts: ClassVar[bool] = False
    """Its outputs are places that tokens move to without changing their order."""

    counts: ClassVar[frozenset[str]] = frozenset()
    """Operands i32 [B] that say how many of the first columns of a row count; the others change nothing."""

    def cost(self, *operands: Value | None, **attributes: Any) -> tuple[DimLike, DimLike]:
        """(flops, bytes moved when operands are read and outputs written once), as symbolic expressions."""
        given = [v.type for v in operands if v is not None]
        outputs = _types(self.infer(*operands, **attributes))
        moved: DimLike = 0
        for t in (*given, *outputs):
            moved = moved + t.bytes
        return self.flops(*operands, **attributes), moved

    def ranges(self, node: Node, /, *given: Range | None) -> tuple[Range, ...]:
        """Bounds of the outputs of one use, from those of the operands; a composite's follow from its body."""
        if self.body is None or not any(v.dtype.is_float for v in node.outputs):
            return unknown(node)
        types = [None if v is None else v.type for v in node.operands]
        names = self.signature.operand_names(len(node.operands))
        return of_body(body_of(self, types, node.attributes), given, names)

    # -- facts of one use ------------------------------------------------------------------------------------

    def times(self, node: Node, number: Value) -> Value | None:
        """The output of `node` times a scalar constant, multiplied on the way to it; None to multiply the output."""
        return None

    def view(self, node: Node, strides: Strides, old: tuple[int, ...], new: tuple[int, ...]) -> Strides | None:
        """Strides of an output that lies in the memory of the first operand; None if it has memory of its own.

        strides, old: strides and shape of the operand. new: shape of the output.
        """
        return None

    def strides(self, shape: tuple[int, ...]) -> Strides | None:
        """How an output that is no view is laid out, if the op decides that."""
        return None

    def backward_reads(self, node: Node, layout: Layout, /) -> Saved:
        """What the backward pass of a use reads again. Rules that ops share are in backward_reads.py."""
        return everything(self, node, layout)

    def shard(self, node: Node, known: Cuts, /) -> dict[Value, Cut]:
        """How operands and outputs are cut over ranks, if they are as `known` says. Raises Stop for what cannot be."""
        rule = elementwise if self.elementwise and not self.random else needs_all
        return rule(self, node, known)

    @property
    def has_shard_rule(self) -> bool:
        """Whether the op says how it is cut; a composite that does not is taken apart first."""
        return self.elementwise or type(self).shard is not Op.shard

    def shard_attributes(self, node: Node, cuts: Cuts, size: int) -> Attributes:
        """Attributes of a use on one of `size` ranks, where values are cut as `cuts` says."""
        return dict(node.attributes)

    def typed(
        self, operands: Sequence[Value | None], attributes: Attributes, location: Location
    ) -> tuple[Attributes, tuple[TensorType, ...]]:
        """Check a use of the op; gives complete attributes and output types. Raises OpError with the place."""
        try:
            given = self.signature.attributes_of(attributes)
            self.signature.check(operands, given)
            self._check_encoded(operands)
            full = self.complete(*operands, **given)
            full = {k: full[k] for k in self.signature.attributes}
            return full, _types(self.infer(*operands, **full))
        except MonographError as e:
            named = zip(self.signature.operand_names(len(operands)), operands, strict=False)
            shown = [f"{n}{' = ' if v.name else ': '}{v!r}" for n, v in named if v is not None]
            place = str(location) if location.file or location.scope else ""
            raise OpError(f"{self.name}: {e.what}", place=place, details=shown, hint=e.hint) from None

    def _check_encoded(self, operands: Sequence[Value | None]) -> None:
        for name, v in zip(self.signature.operand_names(len(operands)), operands, strict=False):
            if v is not None and v.type.encoding is not None and not self.reads_encoded:
                hint = f"read it through dequantize({name})"
                raise OpError(f"{name} is {v.type}, an encoded weight, which only dequantize reads", hint=hint)

    def __repr__(self) -> str:
        return self.name


class HasInfer(Protocol[P]):
    def infer(self, *args: P.args, **kwargs: P.kwargs) -> TensorType: ...


class HasInferMany(Protocol[P]):
    def infer(self, *args: P.args, **kwargs: P.kwargs) -> tuple[TensorType, ...]: ...


class OpFunction(Generic[P, R]):
    """An op as a function on Values: adds a node to their graph and gives its output, or a tuple of outputs."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.__name__ = self.__qualname__ = op.name
        self.__module__ = type(op).__module__
        self.__wrapped__, self.__doc__ = op.infer, type(op).__doc__

    @property
    def __signature__(self) -> inspect.Signature:
        """Operands and attributes, with types and defaults, for `help()` and editors."""
        return self.op.signature.python(self.op)

    @property
    def __text_signature__(self) -> str:
        return str(self.__signature__)

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """The function itself: in a class it is no method. `help()` takes what has `__get__` for a function."""
        return self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            operands, attributes = self.op.signature.bind(args, kwargs)
        except OpError as e:
            graph = next((v.graph for v in args if isinstance(v, Value)), None)
            place = str(place_of(graph)) if graph is not None else ""
            raise OpError(f"{self.op.name}: {e.what}", place=place, hint=e.hint) from None
        graph = current_graph(operands)
        outputs = graph.add(self.op, graph.lifted(self.op, operands), attributes)
        return cast("R", outputs[0] if len(outputs) == 1 else outputs)

    def __repr__(self) -> str:
        return f"op {self.op.name}{self.__signature__}"


class BinaryFunction(OpFunction[..., Value]):
    """An elementwise op of two operands, of which either may be a plain number."""

    if TYPE_CHECKING:

        def __call__(self, x: Operand, y: Operand) -> Value: ...


@overload
def op(cls: Callable[[], HasInfer[P]]) -> OpFunction[P, Value]: ...
@overload
def op(cls: Callable[[], HasInferMany[P]]) -> OpFunction[P, tuple[Value, ...]]: ...
def op(cls: Callable[[], Any]) -> OpFunction[..., Any]:
    """Register an op class, so that text can name it, and give the function that adds a node of it.

    Text means the newest of people's own classes of one name. Raises MonographError for a name that is taken.
    """
    return OpFunction(_registered(cls()))


def binary(cls: Callable[[], HasInfer[[Value, Value]]]) -> BinaryFunction:
    """`op` for an elementwise op of operands x and y: type checkers know that it takes plain numbers."""
    return BinaryFunction(_registered(cast("Op", cls())))


def _registered(instance: Op) -> Op:
    if instance.name in OPS and not _again(type(OPS[instance.name]), type(instance)):
        raise MonographError(f"two ops are called {instance.name}")
    if (instance.body is None) == (instance.numpy is None):
        raise MonographError(f"op {instance.name} needs either a body or numpy semantics")
    OPS[instance.name] = instance
    return instance


def _again(known: type, new: type) -> bool:
    """Whether a class of people's own is defined again, as when its file, or a copy of it, is read again."""
    package = f"{__name__.partition('.')[0]}."
    outside = not known.__module__.startswith(package) and not new.__module__.startswith(package)
    return outside and known.__qualname__ == new.__qualname__


def _types(inferred: TensorType | tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    return inferred if isinstance(inferred, tuple) else (inferred,)


def _freeze(attributes: Attributes) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(attributes.items()))


def body_of(op: Op, types: Sequence[TensorType | None], attributes: Attributes) -> Graph:
    """The body of a composite as a graph whose inputs carry the operand names. Shared: never change it."""
    return expand(op, tuple(types), _freeze(attributes))


@lru_cache(maxsize=4096)
def _body_links(op: Op, types: tuple[TensorType | None, ...], attributes: tuple[tuple[str, Any], ...]) -> Links:
    return links_of_body(expand(op, types, attributes))


@lru_cache(maxsize=4096)
def expand(op: Op, types: tuple[TensorType | None, ...], attributes: tuple[tuple[str, Any], ...]) -> Graph:
    graph = Graph(op.name)
    names = op.signature.operand_names(len(types))
    operands = [None if t is None else graph.input(n, t) for n, t in zip(names, types, strict=True)]
    assert op.body is not None
    narrow = {v.dtype for v in operands if v is not None and v.dtype.is_float and v.dtype.bits < 32}
    widened = op.wide and len(narrow) == 1
    with building(graph):
        if widened:
            operands = [v.cast(f32) if v is not None and v.dtype in narrow else v for v in operands]
        made: Value | tuple[Value, ...] = op.body(*operands, **dict(attributes))
        for i, v in enumerate(made if isinstance(made, tuple) else (made,)):
            if not isinstance(v, Value):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise OpError(f"{op.name}: body gives {v!r}, expected a value of the graph")
            graph.output(f"output{i}", v.cast(*narrow) if widened and v.dtype == f32 else v)
    return graph
