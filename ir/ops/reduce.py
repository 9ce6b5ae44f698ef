"""Reductions over one axis, softmax and running sums.

A reduced axis stays, with size 1, unless `keepdims` is false: what comes out broadcasts against what went in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import OpError, check
from ..flow import Link, Links, along
from ..graph import Node, Value
from ..op import Op, op
from ..ranges import Range
from ..types import DimLike, DType, TensorType, bool_, i64
from .checks import floating, number


def accumulator(x: Any) -> Any:
    """x in the width that kernels add up in: f32 for 16-bit floats."""
    return x.astype(np.float32) if DType.of(x.dtype) in (DType.f16, DType.bf16) else x


class AlongAxis(Op):
    """An op with an `axis`, which is kept counted from the right (-1 is the last) so that it has one spelling."""

    def complete(self, *operands: Value | None, axis: int, **attributes: Any) -> dict[str, Any]:
        x = operands[0] if operands else None
        if x is None:
            raise OpError("takes at least one operand")
        check(-x.rank <= axis < x.rank, f"axis {axis} is outside rank {x.rank}")
        return {"axis": axis - x.rank if axis >= 0 else axis, **attributes}


def reduced(x: Value, axis: int, keepdims: bool) -> TensorType:
    """Type of x without (or with 1 in place of) one axis."""
    at = axis % x.rank
    return TensorType(x.dtype, x.shape[:at] + ((1,) if keepdims else ()) + x.shape[at + 1 :])


def reduced_links(x: Value, axis: int, keepdims: bool) -> Links:
    """All of one axis is read; those behind it move up unless it stays."""
    at = axis % x.rank
    others = (Link(0, i, i - (i > at and not keepdims)) for i in range(x.rank) if i != at)
    return (Link(0, at, None), *others)


def elements(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Bounds of what is one of the elements, or lies between them."""
    (x,) = (r for r in given if r is not None)
    return (Range(x.low, x.high),)


def _of_one(node: Node) -> Value | None:
    """Over an axis of one element: what is there, with that axis or without."""
    x = node.arguments[0]
    return x.reshape(*node.output.shape) if x.shape[node.attributes["axis"]] == 1 else None


class Reduce(AlongAxis):
    canonical = (_of_one,)
    shard = shard_rules.needs_all
    torch_name: ClassVar[str]
    onnx_name: ClassVar[str]

    def links(self, x: Value, *, axis: int, keepdims: bool) -> Links:
        return reduced_links(x, axis, keepdims)

    def infer(self, x: Value, *, axis: int = -1, keepdims: bool = True) -> TensorType:
        floating(x=x)
        return reduced(x, axis, keepdims)

    def flops(self, x: Value, *, axis: int, keepdims: bool) -> DimLike:
        return x.type.elements

    def numpy(self, x: Any, *, axis: int, keepdims: bool) -> Any:
        return getattr(np, self.torch_name)(accumulator(x), axis=axis, keepdims=keepdims).astype(x.dtype)

    def torch(self, torch: Any, x: Any, *, axis: int, keepdims: bool) -> Any:
        return getattr(torch, self.torch_name)(x, dim=axis, keepdim=keepdims)

    def onnx(self, op: Any, x: Any, *, axis: int, keepdims: bool) -> Any:
        return getattr(op, self.onnx_name)(x, op.constant(np.array([axis], np.int64)), keepdims=int(keepdims))


class Sum(Reduce):
    """Sum of x [...] over one axis, of floats or i64 (narrower integers would be widened by some backends only).

    axis: which one. keepdims: it stays, with length 1.
    """

    adds_up = True
    torch_name, onnx_name = "sum", "ReduceSum"

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        (x,) = (r for r in given if r is not None)
        axis: int = node.attributes["axis"]
        size = node.arguments[0].shape[axis]
        return (Range(size * x.low, size * x.high) if isinstance(size, int) else Range(),)

    backward_reads = reads.nothing

    def infer(self, x: Value, *, axis: int = -1, keepdims: bool = True) -> TensorType:
        check(x.dtype.is_float or x.dtype == i64, f"x is {x.dtype}, expected a floating-point type or i64: cast it")
        return reduced(x, axis, keepdims)


class Mean(Reduce):
    """Arithmetic mean of x [...] over one axis. axis: which one. keepdims: it stays, with length 1."""

    torch_name, onnx_name = "mean", "ReduceMean"
    ranges = elements
    backward_reads = reads.nothing


class Max(Reduce):
    """Largest element of x [...] over one axis. axis: which one. keepdims: it stays, with length 1."""

    torch_name, onnx_name = "amax", "ReduceMax"
    ranges = elements
    backward_reads = reads.both_ends

    def infer(self, x: Value, *, axis: int = -1, keepdims: bool = True) -> TensorType:
        number(x=x)
        return reduced(x, axis, keepdims)


class Min(Reduce):
    """Smallest element of x [...] over one axis. axis: which one. keepdims: it stays, with length 1."""

    torch_name, onnx_name = "amin", "ReduceMin"
    ranges = elements
    backward_reads = reads.both_ends

    def infer(self, x: Value, *, axis: int = -1, keepdims: bool = True) -> TensorType:
        number(x=x)
        return reduced(x, axis, keepdims)


class Any_(Reduce):
    """True where any element of x [...] along the axis is; bool in, bool out.

    axis: which one. keepdims: it stays, with length 1.
    """

    torch_name, onnx_name = "any", "ReduceMax"
    name = "any"  # type: ignore[assignment]
    backward_reads = reads.nothing

    def infer(self, x: Value, *, axis: int = -1, keepdims: bool = True) -> TensorType:
        check(x.dtype == bool_, f"x is {x.dtype}, expected bool")
        return reduced(x, axis, keepdims)

    def onnx(self, op: Any, x: Any, *, axis: int, keepdims: bool) -> Any:
        number = op.Cast(x, to=op.element_type(i64))
        largest = op.ReduceMax(number, op.constant(np.array([axis], np.int64)), keepdims=int(keepdims))
        return op.Cast(largest, to=op.element_type(x.dtype))


class Argmax(AlongAxis):
    """Index of the first largest element of x [...] along one axis, i64.

    axis: which one. keepdims: it stays, with length 1.
    """

    backward_reads = reads.nothing
    shard = shard_rules.needs_all

    def infer(self, x: Value, *, axis: int = -1, keepdims: bool = True) -> TensorType:
        number(x=x)
        return reduced(x, axis, keepdims).with_dtype(i64)

    def links(self, x: Value, *, axis: int, keepdims: bool) -> Links:
        return reduced_links(x, axis, keepdims)

    def flops(self, x: Value, *, axis: int, keepdims: bool) -> DimLike:
        return x.type.elements

    def numpy(self, x: Any, *, axis: int, keepdims: bool) -> Any:
        return np.argmax(x, axis=axis, keepdims=keepdims)

    def torch(self, torch: Any, x: Any, *, axis: int, keepdims: bool) -> Any:
        return torch.argmax(x, dim=axis, keepdim=keepdims)

    def onnx(self, op: Any, x: Any, *, axis: int, keepdims: bool) -> Any:
        return op.ArgMax(x, axis=axis, keepdims=int(keepdims))


class Softmax(AlongAxis):
    """e**x / sum(e**x) over one axis of x [...], computed after subtracting the largest element."""

    rounding: ClassVar[Mapping[str, float]] = {"x": 0.05}
    keeps_layout = True

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        """Shares of one: no row is longer than 1 along the axis."""
        rows = 1.0 if node.attributes["axis"] == -1 else math.inf
        return (Range(0.0, 1.0, rows),)

    backward_reads = reads.output
    shard = shard_rules.along_axis

    def infer(self, x: Value, *, axis: int = -1) -> TensorType:
        floating(x=x)
        return x.type

    def links(self, x: Value, *, axis: int) -> Links:
        at = axis % x.rank
        return along(x.shape, at, (Link(0, at, at), Link(0, at, None)))

    def flops(self, x: Value, *, axis: int) -> DimLike:
        return 5 * x.type.elements

    def numpy(self, x: Any, *, axis: int) -> Any:
        wide = accumulator(x)
        e = np.exp(wide - np.max(wide, axis=axis, keepdims=True, initial=-np.inf))
        return (e / np.sum(e, axis=axis, keepdims=True)).astype(x.dtype)

    def torch(self, torch: Any, x: Any, *, axis: int) -> Any:
        return torch.softmax(x, dim=axis)

    def onnx(self, op: Any, x: Any, *, axis: int) -> Any:
        return op.Softmax(x, axis=axis)


class Cumsum(AlongAxis):
    """y[i] = x[0] + ... + x[i] along an axis of x [...], of floats or i64."""

    sensitive = True

    backward_reads = reads.nothing
    shard = shard_rules.along_axis

    def infer(self, x: Value, *, axis: int = -1) -> TensorType:
        check(x.dtype.is_float or x.dtype == i64, f"x is {x.dtype}, expected a floating-point type or i64: cast it")
        return x.type

    def links(self, x: Value, *, axis: int) -> Links:
        at = axis % x.rank
        return along(x.shape, at, (Link(0, at, at, upto=True),))

    def flops(self, x: Value, *, axis: int) -> DimLike:
        return x.type.elements

    def numpy(self, x: Any, *, axis: int) -> Any:
        return np.cumsum(accumulator(x), axis=axis).astype(x.dtype)

    def torch(self, torch: Any, x: Any, *, axis: int) -> Any:
        return torch.cumsum(x, dim=axis)

    def onnx(self, op: Any, x: Any, *, axis: int) -> Any:
        # Counted from the left: ONNX's own evaluator takes a negative axis for another one.
        return op.CumSum(x, op.constant(np.array(axis % len(x.shape), np.int64)))


sum, mean, max, min, any = op(Sum), op(Mean), op(Max), op(Min), op(Any_)
argmax, softmax, cumsum = op(Argmax), op(Softmax), op(Cumsum)
