"""Base class of all ops: signature from `infer`, attribute check, registry, typed builders."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, ParamSpec, Protocol, cast, overload

import numpy as np

from .errors import MonographError, OpError, did_you_mean
from .flow import Links, links_of_body
from .graph import Attributes, Graph, Location, Value, building, current_graph
from .types import DimLike, TensorType

P = ParamSpec("P")
OPS: dict[str, Op] = {}


class Op:
    """One operation, everything about it in one class.

    `infer(self, *operands, *, attributes)` is the shape rule and the signature: positional = operands,
    keyword-only = attributes, `= None` = optional operand, `*xs` = any number of operands.
    A composite has `body` (over other ops); a primitive has `numpy`. `torch` and `onnx` lower the op when the
    backend can say it in one go; without them the backend lowers the body.
    """

    commutative: ClassVar[bool] = False
    choices: ClassVar[Attributes] = {}
    """Values that a fusion pattern tries for an attribute on which `body` branches; `...` captures any value."""

    random: ClassVar[bool] = False
    """`torch` takes `training`, a bool that is false in evaluation mode."""

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
        """Links through the body. Raises OpError for a primitive that does not say what it reads."""
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

    def typed(
        self, operands: Sequence[Value | None], attributes: Attributes, location: Location
    ) -> tuple[Attributes, tuple[TensorType, ...]]:
        """Check a use of the op; gives complete attributes and output types. Raises OpError with the place."""
        try:
            self.signature.check(operands)
            full = self.complete(*operands, **self.signature.attributes_of(attributes))
            full = {k: full[k] for k in self.signature.attributes}
            return full, _types(self.infer(*operands, **full))
        except (MonographError, TypeError) as e:
            what = e.what if isinstance(e, MonographError) else str(e)
            names = self.signature.operand_names(len(operands))
            shown = [f"{n} = {v!r}" for n, v in zip(names, operands, strict=False) if v is not None]
            hint = e.hint if isinstance(e, MonographError) else ""
            place = str(location) if location.file or location.scope else ""
            raise OpError(f"{self.name}: {what}", place=place, details=shown, hint=hint) from None

    def __repr__(self) -> str:
        return self.name


class Signature:
    """Operand and attribute names of an op, read from its `infer`."""

    def __init__(self, op: Op) -> None:
        self.op = op
        signature = inspect.signature(op.infer)
        parameters = signature.parameters.values()
        self.outputs = str(signature.return_annotation).count("TensorType")
        kinds = inspect.Parameter
        self.operands = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        self.variadic = next((p.name for p in parameters if p.kind is kinds.VAR_POSITIONAL), None)
        self.optional = {p.name for p in parameters if p.default is None and p.name in self.operands}
        self.attributes = {p.name: p.default for p in parameters if p.kind is kinds.KEYWORD_ONLY}

    def operand_names(self, count: int) -> list[str]:
        extra = [f"{self.variadic}[{i}]" for i in range(count - len(self.operands))] if self.variadic else []
        return (self.operands + extra)[:count]

    def attributes_of(self, given: Attributes) -> Attributes:
        """All attributes with defaults filled in. Raises OpError for a missing or unknown one."""
        for name in given:
            if name not in self.attributes:
                raise OpError(f"has no attribute {name!r}{did_you_mean(name, self.attributes)}")
        full = {k: _plain(given.get(k, default)) for k, default in self.attributes.items()}
        missing = [k for k, v in full.items() if v is inspect.Parameter.empty]
        if missing:
            raise OpError(f"attribute {missing[0]!r} is missing")
        return full

    def bind(self, args: Sequence[Any], kwargs: Attributes) -> tuple[list[Any], Attributes]:
        """Split a Python call into operands (optional ones filled with None) and attributes."""
        operands = list(args)
        for name in self.operands[len(operands) :]:
            operands.append(kwargs.pop(name, None))
        return operands, kwargs

    def check(self, operands: Sequence[Value | None]) -> None:
        """Raises OpError when an operand is missing or there are too many."""
        given = [*operands, *[None] * (len(self.operands) - len(operands))]
        for name, v in zip(self.operands, given, strict=False):
            if v is None and name not in self.optional:
                raise OpError(f"operand {name!r} is missing")
        if not operands and self.variadic:
            raise OpError("takes at least one operand")
        if len(operands) > len(self.operands) and not self.variadic:
            raise OpError(f"takes {len(self.operands)} operands but {len(operands)} were given")


class HasInfer(Protocol[P]):
    def infer(self, *args: P.args, **kwargs: P.kwargs) -> TensorType: ...


class HasInferMany(Protocol[P]):
    def infer(self, *args: P.args, **kwargs: P.kwargs) -> tuple[TensorType, ...]: ...


@overload
def op(cls: Callable[[], HasInfer[P]]) -> Callable[P, Value]: ...
@overload
def op(cls: Callable[[], HasInferMany[P]]) -> Callable[P, tuple[Value, ...]]: ...
def op(cls: Callable[[], Any]) -> Callable[..., Any]:
    """Register an op class and give its builder: called with Values, it adds a node and returns the outputs."""
    instance: Op = cls()
    if instance.name in OPS:
        raise MonographError(f"two ops are called {instance.name}")
    if (instance.body is None) == (instance.numpy is None):
        raise MonographError(f"op {instance.name} needs either a body or numpy semantics")
    OPS[instance.name] = instance

    def build(*args: Any, **kwargs: Any) -> Any:
        operands, attributes = instance.signature.bind(args, kwargs)
        graph = current_graph(operands)
        outputs = graph.add(instance, operands, attributes)
        return outputs[0] if len(outputs) == 1 else outputs

    build.__name__ = instance.name
    build.__doc__ = type(instance).__doc__
    return build


def _types(inferred: TensorType | tuple[TensorType, ...]) -> tuple[TensorType, ...]:
    return inferred if isinstance(inferred, tuple) else (inferred,)


def _plain(value: Any) -> Any:
    """Lists as tuples and NumPy numbers as Python's, so that equal attributes compare and print alike."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, cast("Sequence[Any]", value)))
    return cast("np.generic[Any]", value).item() if isinstance(value, np.generic) else value


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
    with building(graph):
        made: Value | tuple[Value, ...] = op.body(*operands, **dict(attributes))
    for i, v in enumerate(made if isinstance(made, tuple) else (made,)):
        graph.output(f"output{i}", v)
    return graph
