"""Between ONNX types and the IR's: element types, names of dimensions, and expressions among them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping

import onnx

from ...ir.errors import MonographError
from ...ir.types import Dim, DimLike, DType, TensorType, parse_dim
from .errors import OnnxFileError, UntypedError

_P = onnx.TensorProto
DTYPES: dict[int, DType] = {
    _P.DOUBLE: DType.f64,
    _P.FLOAT: DType.f32,
    _P.FLOAT16: DType.f16,
    _P.BFLOAT16: DType.bf16,
    _P.INT64: DType.i64,
    _P.INT32: DType.i32,
    _P.INT16: DType.i16,
    _P.INT8: DType.i8,
    _P.INT4: DType.i4,
    _P.UINT64: DType.u64,
    _P.UINT32: DType.u32,
    _P.UINT16: DType.u16,
    _P.UINT8: DType.u8,
    _P.UINT4: DType.u4,
    _P.BOOL: DType.bool_,
    _P.FLOAT8E4M3FN: DType.f8e4m3fn,
    _P.FLOAT8E5M2: DType.f8e5m2,
    _P.FLOAT8E4M3FNUZ: DType.f8e4m3fnuz,
    _P.FLOAT8E5M2FNUZ: DType.f8e5m2fnuz,
    _P.FLOAT8E8M0: DType.f8e8m0,
    _P.FLOAT4E2M1: DType.f4e2m1,
    _P.UINT2: DType.u2,
    _P.INT2: DType.i2,
    _P.STRING: DType.text,
}
ELEMENTS = {v: k for k, v in DTYPES.items()}


_DIGITS = 19
"""Digits of a number that does not fit into 64 bits for sure."""
MOST_TERMS, MOST_RANK = 64, 64
"""Terms of a dimension, and axes of an array of NumPy."""
_LONGEST = 200
"""Letters of the longest name of a dimension that is read as an expression."""


class Symbols:
    """Names of dimensions as a file has them => symbols of the IR, one for one; and new symbols.

    bound: symbols that stand for other sizes. expressions: names that read as sums of products of names are these.
    """

    def __init__(self, bound: Mapping[str, DimLike] | None = None, *, expressions: bool = True) -> None:
        self._bound = dict(bound or {})
        self._expressions = expressions
        self._known: dict[str, Dim] = {}
        self._taken: set[str] = set()
        self._allowed: set[str] = set()
        self._fresh = 0

    def named(self, name: str) -> DimLike:
        """The dimension of that name; what is written as a sum of products of names is one.

        Digits alone are no name (ONNX has identifiers for names), but the number: some exporters write numbers so.
        """
        if name.isascii() and name.isdecimal() and len(name) < _DIGITS:
            return int(name)
        if name not in self._known and (found := self._expression(name)) is not None:
            return found
        if name not in self._known:
            plain = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or "d"
            self._known[name] = self._new(plain if re.match(r"[A-Za-z_]", plain) else f"d{plain}")
        found = self._known[name].substitute(self._bound)
        self.allow(found)
        return found

    def later(self, name: str) -> DimLike:
        """As `named`, of a value inside: an expression of names that no input has says nothing."""
        parsed = None if name in self._known else self._parsed(name)
        if isinstance(parsed, Dim) and not parsed.symbols <= self._known.keys():
            return self.fresh()
        return self.named(name)

    def has(self, names: Iterable[str]) -> bool:
        """Whether all of these are symbols that were given out."""
        return (self._taken | self._allowed).issuperset(names)

    def allow(self, d: DimLike) -> None:
        """Take a dimension of symbols that others gave out for one that is known."""
        self._allowed |= d.symbols if isinstance(d, Dim) else frozenset()

    def fresh(self) -> Dim:
        """A size that nothing is known of."""
        self._fresh += 1
        return self._new(f"u{self._fresh}")

    def _expression(self, name: str) -> DimLike | None:
        parsed = self._parsed(name)
        if not isinstance(parsed, Dim):
            return parsed
        return parsed.substitute({s: self.named(s) for s in parsed.symbols})

    def _parsed(self, name: str) -> DimLike | None:
        if not self._expressions or len(name) > _LONGEST or not re.search(r"[+*-]", name):
            return None
        if re.search(r"[^\w\s.+*-]", name):
            return None
        try:
            return parse_dim(name)
        except MonographError:
            return None

    def _new(self, name: str) -> Dim:
        free, i = name, 0
        while True:
            if free not in self._taken:
                try:
                    found = Dim.symbol(free)
                except MonographError:  # It reads as something else in text, as a number or a type.
                    free = f"{free}_"
                    continue
                self._taken.add(free)
                return found
            i += 1
            free = f"{name}_{i}"


def is_small(d: DimLike) -> bool:
    """Whether a number has 64 bits, and a dimension few terms: a file may square both again and again."""
    if isinstance(d, Dim):
        return len(d.terms) <= MOST_TERMS and all(is_small(c) for _, c in d.terms)
    return -(1 << 63) <= int(d) < 1 << 64


def check_sizes(type: TensorType, place: str) -> None:
    """Raises OnnxFileError for a tensor that no array and no count can hold."""
    if type.rank > MOST_RANK:
        raise OnnxFileError(f"has rank {type.rank}; {MOST_RANK} is the most", place=place)
    known = math.prod(d for d in type.shape if isinstance(d, int))
    if known >= 1 << 63 or not all(map(is_small, type.shape)):
        raise OnnxFileError(f"is of type {str(type)[:200]}, more elements than can be counted", place=place)


def type_of(
    proto: onnx.TypeProto, symbols: Symbols, place: str, read: Callable[[str], DimLike] | None = None
) -> TensorType | None:
    """The IR's type; None where rank or element type are not said. read: the dimension of a name, if not of the file's.

    Raises OnnxFileError for what is no tensor, or holds elements that the IR has no type for.
    """
    if proto.WhichOneof("value") not in ("tensor_type", None):
        raise UntypedError(f"is a {proto.WhichOneof('value')}, and only tensors are known here", place=place)
    t = proto.tensor_type
    if t.elem_type and t.elem_type not in DTYPES:
        raise UntypedError(f"has element type {t.elem_type}, which has no counterpart in the IR", place=place)
    if not t.elem_type or not t.HasField("shape"):
        return None
    return TensorType(DTYPES[t.elem_type], tuple(dim_of(d, symbols, place, read or symbols.named) for d in t.shape.dim))


def dim_of(d: onnx.TensorShapeProto.Dimension, symbols: Symbols, place: str, read: Callable[[str], DimLike]) -> DimLike:
    """One dimension; a new symbol where it is not said."""
    if d.HasField("dim_value"):
        if d.dim_value < 0:
            raise OnnxFileError(f"has a dimension of {d.dim_value}", place=place)
        return d.dim_value
    return read(d.dim_param) if d.dim_param else symbols.fresh()


def proto_of(type: TensorType) -> onnx.TypeProto:
    """The ONNX type; symbolic dimensions by their text."""
    shape = [d if isinstance(d, int) else str(d) for d in type.shape]
    return onnx.helper.make_tensor_type_proto(ELEMENTS[type.dtype], shape)
