"""ATen ops of complex numbers, each written in real ones: of a complex tensor both parts are values of the graph.

What moves elements and what is linear acts on each part by itself, by the handler of real tensors. Other ops than those
of this file are refused.
"""

from __future__ import annotations

from typing import Any, cast

from ...ir import Value, ops
from ...ir.ops.shape import Expand
from .call import Call, Complex, Handler, Number, Result, Table
from .creation import CREATION
from .elementwise import ELEMENTWISE
from .errors import UnknownFormError
from .indexing import INDEXING
from .reductions import REDUCTIONS
from .shapes import SHAPES, part

Mixed = Number | Complex | complex
"""What an argument may be where an op takes complex tensors and real ones."""


def is_complex(x: Any) -> bool:
    """Whether an argument is a complex tensor or number, or a list with one."""
    if isinstance(x, list):
        return any(map(is_complex, cast("list[Any]", x)))
    return isinstance(x, (Complex, complex))


def of_pairs(x: Value) -> Complex:
    """Real numbers [.., 2] as complex ones [..]."""
    real, imag = (ops.reshape(part(x, x.rank - 1, i, 1), shape=x.shape[:-1]) for i in (0, 1))
    return Complex(real, imag)


def _viewed(c: Call, x: Value) -> Complex:
    return of_pairs(x)


def _pairs(c: Call, x: Complex) -> Value:
    """view_as_real: [.., 2]."""
    return ops.concat(*(ops.reshape(v, shape=(*v.shape, 1)) for v in x.parts), axis=-1)


def _promoted(c: Call, x: Mixed) -> Complex:
    """A real tensor or number as a complex one, in the element type of the result."""
    if isinstance(x, Complex):
        return Complex(*(c.cast(v, c.dtype) for v in x.parts))
    if isinstance(x, complex):
        return Complex(c.value(x.real, c.dtype), c.value(x.imag, c.dtype))
    zero = c.value(0, c.dtype)
    return Complex(c.value(x, c.dtype), c.expanded(zero, x.shape) if isinstance(x, Value) else zero)


def _side(x: Any, imag: bool) -> Any:
    """One part of all that is complex in an argument."""
    if isinstance(x, list):
        return [_side(v, imag) for v in cast("list[Any]", x)]
    if isinstance(x, complex):
        raise UnknownFormError(f"the number {x} stands where only real ones are known")
    return x.parts[imag] if isinstance(x, Complex) else x


def _apart(handler: Handler, *mixed: int) -> Handler:
    """What a handler of real tensors gives of each part. mixed: arguments that may be real beside complex ones."""

    def both(c: Call, *arguments: Any) -> Result:
        given = list(arguments)
        for i in mixed:
            x = given[i]
            given[i] = [_promoted(c, v) for v in cast("list[Any]", x)] if isinstance(x, list) else _promoted(c, x)
        real, imag = (handler(c, *(_side(x, side) for x in given)) for side in (False, True))
        if isinstance(real, tuple) and isinstance(imag, tuple):
            return tuple(Complex(cast("Value", a), cast("Value", b)) for a, b in zip(real, imag, strict=True))
        return Complex(cast("Value", real), cast("Value", imag))

    return both


def _product(c: Call, x: Mixed, y: Mixed) -> Complex:
    if not is_complex(x):
        x, y = y, x
    a, b = _promoted(c, x).parts
    if not is_complex(y):
        factor = c.value(cast("Number", y), c.dtype)
        none = isinstance(x, complex) and x.real == 0  # Of 1j * x the real part is 0.
        return Complex(c.expanded(c.value(0, c.dtype), c.shape) if none else a * factor, b * factor)
    u, v = _promoted(c, y).parts
    return Complex(a * u - b * v, a * v + b * u)


def _quotient(c: Call, x: Mixed, y: Mixed, rounding_mode: str | None = None) -> Complex:
    if not is_complex(y):
        divisor = c.value(cast("Number", y), c.dtype)
        return Complex(*(v / divisor for v in _promoted(c, x).parts))
    u, v = _promoted(c, y).parts
    size = u * u + v * v
    return Complex(*(p / size for p in _product(c, x, Complex(u, -v)).parts))


def _reciprocal(c: Call, x: Complex) -> Complex:
    return _quotient(c, 1, x)


def _conjugate(c: Call, x: Complex) -> Complex:
    return Complex(x.real, -x.imag)


def _of_parts(c: Call, real: Value, imag: Value) -> Complex:
    return Complex(c.expanded(real, c.shape), c.expanded(imag, c.shape))


def _polar(c: Call, size: Value, angle: Value) -> Complex:
    cosine, sine = ops.cos(angle), ops.sin(angle)
    return Complex(cosine, sine) if _is(1, size) else Complex(size * cosine, size * sine)


def _exponential(c: Call, x: Complex) -> Complex:
    cosine, sine = ops.cos(x.imag), ops.sin(x.imag)
    if _is(0, x.real):
        return Complex(cosine, sine)
    size = ops.exp(x.real)
    return Complex(size * cosine, size * sine)


def _is(number: int, v: Value) -> bool:
    """Whether all elements of a value are written as this number."""
    node = v.producer
    return (node.value("x") if node is not None and isinstance(node.op, Expand) else v).number == number


def _part_of(imag: bool) -> Handler:
    def handler(c: Call, x: Complex) -> Value:
        return x.parts[imag]

    return handler


def _to(c: Call, x: Value | Complex, *rest: Any) -> Result:
    """Between element types; to a real one the imaginary part is dropped, as in PyTorch."""
    if c.complex[0]:
        return _promoted(c, x)
    return c.cast(_side(x, False), c.dtype)


def _ones(c: Call, *rest: Any) -> Complex:
    return Complex(*(c.expanded(c.value(number, c.dtype), c.shape) for number in (1, 0)))


def _alike(table: Table, *mixed: int, names: tuple[str, ...] | None = None) -> Table:
    """The ops of a table, or those of these names, on both parts apart."""
    return {name: _apart(table[name], *mixed) for name in (table if names is None else map(_full_name, names))}


def _full_name(name: str) -> str:
    return f"aten.{name}"


_SAME = ("alias.default", "clone.default", "contiguous.default", "lift_fresh_copy.default", "resolve_conj.default",
    "neg.default", "detach.default")  # fmt: skip
_ZEROS = ("zeros.default", "zeros_like.default", "new_zeros.default", "empty.memory_format", "empty_like.default",
    "new_empty.default")  # fmt: skip
_SUMS = ("sum.default", "sum.dim_IntList", "mean.default", "mean.dim")
_CHOSEN = ("index_select.default", "gather.default", "index.Tensor", "_unsafe_index.Tensor", "embedding.default")
_CASTS = ("_to_copy.default", "to.dtype", "to.device", "to.dtype_layout", "to.other", "type_as.default")

COMPLEX: Table = {
    **_alike({k: v for k, v in SHAPES.items() if k not in ("aten.view.dtype", "aten.constant_pad_nd.default")}),
    **_alike(SHAPES, 0, names=("cat.default", "stack.default")),
    **_alike(SHAPES, 0, 1, names=("slice_scatter.default", "select_scatter.default")),
    **_alike(INDEXING, names=_CHOSEN),
    **_alike(INDEXING, 0, 2, names=("index_put.default", "_unsafe_index_put.default")),
    **_alike(REDUCTIONS, names=_SUMS),
    **_alike(CREATION, names=_ZEROS),
    **_alike(CREATION, 1, names=("full.default", "full_like.default", "copy.default")),
    **_alike(CREATION, 2, names=("new_full.default",)),
    **dict.fromkeys(("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default"), _ones),
    **_alike(ELEMENTWISE, names=_SAME),
    **_alike(ELEMENTWISE, 0, 1, names=("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar")),
    **_alike(ELEMENTWISE, 1, 2, names=("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")),
    **_alike(ELEMENTWISE, 0, 2, names=("masked_fill.Scalar", "masked_fill.Tensor")),
    **dict.fromkeys((_full_name(name) for name in _CASTS), _to),
    **dict.fromkeys(("aten.mul.Tensor", "aten.mul.Scalar"), _product),
    **dict.fromkeys(("aten.div.Tensor", "aten.div.Scalar"), _quotient),
    "aten.reciprocal.default": _reciprocal,
    **dict.fromkeys(
        ("aten._conj.default", "aten._conj_physical.default", "aten.conj.default", "aten.conj_physical.default"),
        _conjugate,
    ),
    "aten.complex.default": _of_parts,
    "aten.polar.default": _polar,
    "aten.exp.default": _exponential,
    **dict.fromkeys(("aten.view_as_complex.default", "aten.view_as_complex_copy.default"), _viewed),
    **dict.fromkeys(("aten.view_as_real.default", "aten.view_as_real_copy.default"), _pairs),
    "aten.real.default": _part_of(imag=False),
    "aten.imag.default": _part_of(imag=True),
}
"""Handlers where an argument or the result is complex."""
