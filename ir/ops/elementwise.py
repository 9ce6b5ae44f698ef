"""Elementwise primitives: arithmetic, functions, comparison, logic, selection, cast, constant."""

from __future__ import annotations

import builtins
import math
import operator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import backward_reads as reads
from .. import range_rules as rules
from .. import shard_rules
from ..canonical import constant_right, made_by, neutral, same_type
from ..errors import OpError, check
from ..flow import Links, aligned
from ..graph import Node, Value
from ..op import Op, binary, op, unmoved
from ..types import DimLike, DType, TensorType, bool_, broadcast, product
from .checks import floating, number, same_dtype

if TYPE_CHECKING:
    from ..layout import Layout

_python: Any = operator
_where: Any = np.where
_erf: Any = np.vectorize(math.erf, otypes=[np.float64])


def elementwise_links(*operands: Value) -> Links:
    """Links of operands that broadcast against each other."""
    return aligned([v.shape for v in operands], builtins.max(v.rank for v in operands))


class Elementwise(Op):
    """One result per element; torch and ONNX call it by `torch_name` and `onnx_name`."""

    elementwise = True
    torch_name: ClassVar[str]
    onnx_name: ClassVar[str]

    def flops(self, *operands: Value | None, **attributes: Any) -> DimLike:
        return product(broadcast(*(v.shape for v in operands if v is not None)) or ())

    def links(self, *operands: Value, **attributes: Any) -> Links:
        return elementwise_links(*operands)

    def torch(self, torch: Any, *xs: Any) -> Any:
        return getattr(torch, self.torch_name)(*xs)

    def onnx(self, op: Any, *xs: Any) -> Any:
        return getattr(op, self.onnx_name)(*xs)


class Unary(Elementwise):
    def infer(self, x: Value) -> TensorType:
        floating(x=x)
        return x.type

    def numpy(self, x: Any) -> Any:
        return getattr(np, self.torch_name)(x)

    kept: ClassVar[tuple[float, float] | None] = None
    """Two numbers between which every result is."""
    ranges = rules.kept


class Binary(Elementwise):
    def infer(self, x: Value, y: Value) -> TensorType:
        number(x=x)
        return self.broadcast(x, y)

    def broadcast(self, x: Value, y: Value) -> TensorType:
        same_dtype(x.dtype, y=y)
        shape = broadcast(x.shape, y.shape)
        if shape is None:
            check(False, f"shapes {shown(x)} and {shown(y)} do not broadcast")
            raise AssertionError
        return TensorType(self.result(x.dtype), shape)

    def result(self, dtype: DType) -> DType:
        return dtype

    def numpy(self, x: Any, y: Any) -> Any:
        return getattr(np, self.torch_name)(x, y)


def shown(v: Value) -> str:
    """The shape of a value, for messages."""
    return f"[{','.join(map(str, v.shape))}]"


class Add(Binary):
    """x + y, broadcast."""

    total = 0
    commutative = True
    torch_name, onnx_name = "add", "Add"
    backward_reads = reads.nothing
    canonical = (constant_right, neutral(0))
    operator = _python.add
    ranges = rules.added


class Sub(Binary):
    """x - y, broadcast."""

    torch_name, onnx_name = "subtract", "Sub"
    backward_reads = reads.nothing
    canonical = (neutral(0),)
    operator = _python.sub
    ranges = rules.subtracted


def _onto_operand(node: Node) -> Value | None:
    """f(x) * c is f(x * c) for transposes and scores, if nothing else reads f(x)."""
    x, number = node.value("x"), node.value("y")
    if x.producer is None or number.number is None or x.users != [node] or x.graph.is_output(x):
        return None
    return x.producer.op.times(x.producer, number)


class Mul(Binary):
    """x * y, broadcast."""

    commutative = True
    torch_name, onnx_name = "multiply", "Mul"
    backward_reads = reads.each_other
    canonical = (constant_right, neutral(1), _onto_operand)
    operator = _python.mul
    ranges = rules.multiplied


def _over_root(node: Node) -> Value | None:
    """a / sqrt(b) is a * rsqrt(b), and 1 / sqrt(b) is rsqrt(b)."""
    a, root = node.value("x"), made_by(node.value("y"), Sqrt)
    if root is None:
        return None
    inverse = rsqrt(root.value("x"))
    return inverse if a.number == 1 and inverse.type == node.output.type else a * inverse


def _times_reciprocal(node: Node) -> Value | None:
    """x / c is x * (1 / c), where the dtype holds 1 / c to its full precision."""
    x, number = node.value("x"), node.value("y").number
    if not number or node.output.type != x.type or not x.dtype.is_normal(1.0 / number):
        return None
    return x * constant(value=1.0 / number, dtype=x.dtype)


class Div(Binary):
    """x / y, broadcast; floating point only."""

    torch_name, onnx_name = "divide", "Div"
    canonical = (neutral(1), _over_root, _times_reciprocal)
    operator = _python.truediv

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        x, y = node.arguments
        return reads.Saved(tuple(v for v in ((x, y) if y in layout.learns else (y,)) if v.number is None))

    def infer(self, x: Value, y: Value) -> TensorType:
        check(x.dtype.is_float, f"x is {x.dtype}: integer division rounds differently on every backend")
        return self.broadcast(x, y)

    ranges = rules.divided


class Maximum(Binary):
    """max(x, y), broadcast."""

    commutative = True
    torch_name, onnx_name = "maximum", "Max"
    backward_reads, ranges = reads.operands, rules.larger
    canonical = (constant_right,)


def _named_power(node: Node) -> Value | None:
    """x ** 2 is x * x; x ** 0.5 is sqrt; x ** -0.5 is rsqrt."""
    x, exponent = node.value("x"), node.value("y").number
    if exponent == 2:
        return x * x
    if exponent == 0.5:
        return sqrt(x)
    return rsqrt(x) if exponent == -0.5 else None


class Minimum(Binary):
    """min(x, y), broadcast."""

    commutative = True
    torch_name, onnx_name = "minimum", "Min"
    backward_reads, ranges = reads.operands, rules.smaller


class Pow(Binary):
    """x ** y, broadcast; floating point only."""

    sensitive, torch_name, onnx_name = True, "pow", "Pow"
    backward_reads = reads.operands
    canonical = (neutral(1), _named_power)
    operator = _python.pow

    def infer(self, x: Value, y: Value) -> TensorType:
        floating(x=x)
        return super().infer(x, y)

    def numpy(self, x: Any, y: Any) -> Any:
        return np.power(x, y)


class Signed(Unary):
    def infer(self, x: Value) -> TensorType:
        check(x.dtype not in (bool_, DType.u8, DType.u4), f"x is {x.dtype}, expected a type with a sign")
        return x.type


def _negated(node: Node) -> Value | None:
    """-(-x) is x."""
    inner = made_by(node.value("x"), Neg)
    return inner.value("x") if inner else None


class Neg(Signed):
    """-x."""

    torch_name, onnx_name = "negative", "Neg"
    backward_reads, ranges = reads.nothing, rules.negated
    canonical = (_negated,)


class Abs(Signed):
    """|x|, of x [...]."""

    torch_name, onnx_name = "abs", "Abs"
    backward_reads, ranges = reads.first, rules.sizes


class Exp(Unary):
    """e ** x."""

    sensitive, torch_name, onnx_name = True, "exp", "Exp"
    backward_reads, ranges = reads.output, rules.exponentials


class Log(Unary):
    """Natural logarithm of x [...]."""

    sensitive, torch_name, onnx_name = True, "log", "Log"
    backward_reads = reads.first


class Sqrt(Unary):
    """Square root of x [...]."""

    sensitive, torch_name, onnx_name = True, "sqrt", "Sqrt"
    backward_reads, ranges = reads.output, rules.roots


class Tanh(Unary):
    """Hyperbolic tangent of x [...]."""

    kept, torch_name, onnx_name = (-1.0, 1.0), "tanh", "Tanh"
    backward_reads = reads.output


class Sin(Unary):
    """Sine, x in radians."""

    sensitive, kept = True, (-1.0, 1.0)
    torch_name, onnx_name = "sin", "Sin"
    backward_reads = reads.first


class Cos(Unary):
    """Cosine, x in radians."""

    sensitive, kept = True, (-1.0, 1.0)
    torch_name, onnx_name = "cos", "Cos"
    backward_reads = reads.first


class Floor(Unary):
    """The largest integer that is at most x."""

    torch_name, onnx_name = "floor", "Floor"
    backward_reads, ranges = reads.nothing, rules.floors


class Rsqrt(Unary):
    """1 / sqrt(x)."""

    sensitive, torch_name, onnx_name = True, "rsqrt", "Sqrt"
    backward_reads, ranges = reads.output, rules.inverse_roots

    def numpy(self, x: Any) -> Any:
        return (1.0 / np.sqrt(x)).astype(x.dtype)

    def onnx(self, op: Any, *xs: Any) -> Any:
        return op.Reciprocal(op.Sqrt(*xs))


class Erf(Unary):
    """Gauss error function of x [...]."""

    kept, torch_name, onnx_name = (-1.0, 1.0), "erf", "Erf"
    backward_reads = reads.first

    def numpy(self, x: Any) -> Any:
        return _erf(x.astype(np.float64)).astype(x.dtype)


class Sigmoid(Unary):
    """1 / (1 + e ** -x)."""

    kept, torch_name, onnx_name = (0.0, 1.0), "sigmoid", "Sigmoid"
    backward_reads = reads.output

    def numpy(self, x: Any) -> Any:
        z = np.exp(-np.abs(x))
        return _where(x >= 0, 1 / (1 + z), z / (1 + z)).astype(x.dtype)


class Cast(Op):
    """x [...] in another element type. dtype: this type."""

    elementwise = True
    backward_reads = reads.nothing
    canonical = (same_type,)
    flops = unmoved

    def view(
        self, node: Node, strides: reads.Strides, old: tuple[int, ...], new: tuple[int, ...]
    ) -> reads.Strides | None:
        return strides if node.value("x").dtype == node.output.dtype else None

    def infer(self, x: Value, *, dtype: DType) -> TensorType:
        return x.type.with_dtype(dtype)

    ranges = rules.cast

    def links(self, x: Value, *, dtype: DType) -> Links:
        return elementwise_links(x)

    def numpy(self, x: Any, *, dtype: DType) -> Any:
        return x.astype(dtype.numpy)

    def torch(self, torch: Any, x: Any, *, dtype: Any) -> Any:
        return x.to(dtype)

    def onnx(self, op: Any, x: Any, *, dtype: DType) -> Any:
        return op.Cast(x, to=op.element_type(dtype))


class Constant(Op):
    """A number, or nested tuples of numbers, written out in the graph. value: these numbers. dtype: their type."""

    constant = True
    backward_reads = reads.nothing
    shard = shard_rules.needs_all
    flops = unmoved

    def infer(self, *, value: Any, dtype: DType) -> TensorType:
        try:
            given = np.asarray(value)
            with np.errstate(over="ignore"):
                kept = given.astype(dtype.numpy)
        except (ValueError, OverflowError) as e:
            raise OpError(f"value is not an array of {dtype}: {e}") from None
        # A number that changes meaning, such as 0.5 in an integer graph, is a mistake; rounding of floats is not.
        fits = given.dtype.kind in "biuf" and (given.dtype.kind == "b") == (dtype == bool_)
        if dtype.is_float:
            fits = fits and bool((np.isfinite(kept) == np.isfinite(given)).all())
        else:
            fits = fits and bool((kept.astype(np.float64) == given).all())
        check(fits, f"value {value!r} cannot be written as {dtype}")
        return TensorType(dtype, given.shape)

    def links(self, *, value: Any, dtype: DType) -> Links:
        return ()

    ranges = rules.written

    def numpy(self, *, value: Any, dtype: DType) -> Any:
        return np.asarray(value, dtype=dtype.numpy)

    def torch(self, torch: Any, *, value: Any, dtype: Any, device: Any) -> Any:
        return torch.tensor(value, dtype=dtype, device=device)

    def onnx(self, op: Any, *, value: Any, dtype: DType) -> Any:
        return op.constant(np.asarray(value, dtype=dtype.numpy))


add, sub, mul, div, pow = binary(Add), binary(Sub), binary(Mul), binary(Div), binary(Pow)
maximum, minimum = binary(Maximum), binary(Minimum)
neg, abs, exp, log, sqrt, rsqrt = op(Neg), op(Abs), op(Exp), op(Log), op(Sqrt), op(Rsqrt)
tanh, sin, cos, erf, sigmoid, floor = op(Tanh), op(Sin), op(Cos), op(Erf), op(Sigmoid), op(Floor)
cast, constant = op(Cast), op(Constant)
