"""Shape primitives: reshape, transpose, expand, concat, slice, gather, iota."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import check
from ..flow import Link, Links, aligned, along, regrouped
from ..graph import Value
from ..op import Op, op
from ..types import Dim, DimLike, DType, Shape, TensorType, bool_, broadcast, exact_div, i64, product
from . import checks
from .reduce import AlongAxis


class Reshape(Op):
    """The same elements in another shape; one -1 stands for what is left."""

    def complete(self, x: Value, *, shape: Shape) -> dict[str, Any]:
        if -1 not in shape:
            return {"shape": shape}
        check(shape.count(-1) == 1, f"shape [{_show(shape)}] has {shape.count(-1)} dimensions that are -1")
        known = product(d for d in shape if d != -1)
        return {"shape": tuple(exact_div(x.type.elements, known) if d == -1 else d for d in shape)}

    def infer(self, x: Value, *, shape: Shape) -> TensorType:
        check(all(isinstance(d, Dim) or d >= 0 for d in shape), f"shape [{_show(shape)}] has a negative dimension")
        check(x.type.elements == product(shape), f"{x.type} has {x.type.elements} elements, not {product(shape)}")
        return TensorType(x.dtype, shape)

    def links(self, x: Value, *, shape: Shape) -> Links:
        return regrouped(x.shape, shape)

    def numpy(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        return np.reshape(x, shape)

    def torch(self, torch: Any, x: Any, *, shape: Any) -> Any:
        return torch.reshape(x, shape)

    def onnx(self, op: Any, x: Any, *, shape: Shape) -> Any:
        return op.reshape(x, shape)


def _show(shape: Shape) -> str:
    return ",".join(map(str, shape))


class Transpose(Op):
    """Axes in the order of `permutation`."""

    def infer(self, x: Value, *, permutation: tuple[int, ...]) -> TensorType:
        check(sorted(permutation) == list(range(x.rank)), f"{list(permutation)} does not order the {x.rank} axes of x")
        return TensorType(x.dtype, tuple(x.shape[i] for i in permutation))

    def links(self, x: Value, *, permutation: tuple[int, ...]) -> Links:
        return tuple(Link(0, axis, to) for to, axis in enumerate(permutation))

    def numpy(self, x: Any, *, permutation: tuple[int, ...]) -> Any:
        return np.transpose(x, permutation)

    def torch(self, torch: Any, x: Any, *, permutation: tuple[int, ...]) -> Any:
        return torch.permute(x, permutation)

    def onnx(self, op: Any, x: Any, *, permutation: tuple[int, ...]) -> Any:
        return op.Transpose(x, perm=list(permutation))


class Expand(Op):
    """x broadcast to `shape`."""

    def infer(self, x: Value, *, shape: Shape) -> TensorType:
        check(broadcast(x.shape, shape) == shape, f"{x.type} does not broadcast to [{_show(shape)}]")
        return TensorType(x.dtype, shape)

    def links(self, x: Value, *, shape: Shape) -> Links:
        return aligned([x.shape], len(shape))

    def numpy(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        return np.broadcast_to(x, shape)

    def torch(self, torch: Any, x: Any, *, shape: Any) -> Any:
        return torch.broadcast_to(x, shape)

    def onnx(self, op: Any, x: Any, *, shape: Shape) -> Any:
        return op.Expand(x, op.shape(shape))


class Concat(AlongAxis):
    """The operands one after the other along an axis."""

    def infer(self, *xs: Value, axis: int) -> TensorType:
        first = xs[0]
        at, total = axis % first.rank, 0
        for x in xs:
            same = x.dtype == first.dtype and x.rank == first.rank
            same = same and all(a == b for i, (a, b) in enumerate(zip(x.shape, first.shape, strict=True)) if i != at)
            check(same, f"{x.type} and {first.type} differ outside axis {axis}")
            total = total + x.shape[at]
        return TensorType(first.dtype, (*first.shape[:at], total, *first.shape[at + 1 :]))

    def links(self, *xs: Value, axis: int) -> Links:
        found: list[Link] = []
        before: DimLike = 0
        for i, x in enumerate(xs):
            at = axis % x.rank
            found += along(x.shape, at, (Link(i, at, at, shift=before),), operand=i)
            before = before + x.shape[at]
        return tuple(found)

    def numpy(self, *xs: Any, axis: int) -> Any:
        return np.concatenate(xs, axis=axis)

    def torch(self, torch: Any, *xs: Any, axis: int) -> Any:
        return torch.cat(xs, dim=axis)

    def onnx(self, op: Any, *xs: Any, axis: int) -> Any:
        return op.Concat(*xs, axis=axis)


class Slice(AlongAxis):
    """x[start : start + length] along one axis."""

    def infer(self, x: Value, *, axis: int, start: DimLike, length: DimLike) -> TensorType:
        at, size = axis % x.rank, x.shape[axis]
        room = size - (start + length)
        inside = all(isinstance(d, Dim) or d >= 0 for d in (start, length, room))
        check(inside, f"[{start}:{start + length}] is outside the {size} elements")
        return TensorType(x.dtype, (*x.shape[:at], length, *x.shape[at + 1 :]))

    def links(self, x: Value, *, axis: int, start: DimLike, length: DimLike) -> Links:
        at = axis % x.rank
        return along(x.shape, at, (Link(0, at, at, shift=-1 * start),))

    def numpy(self, x: Any, *, axis: int, start: int, length: int) -> Any:
        return x[(..., slice(start, start + length), *(slice(None),) * (-axis - 1))]

    def torch(self, torch: Any, x: Any, *, axis: int, start: Any, length: Any) -> Any:
        return torch.narrow(x, axis, start, length)

    def onnx(self, op: Any, x: Any, *, axis: int, start: DimLike, length: DimLike) -> Any:
        return op.Slice(x, op.shape((start,)), op.shape((start + length,)), op.constant(np.array([axis], np.int64)))


class Gather(AlongAxis):
    """Rows of x along `axis` chosen by integer indices: x.shape[:axis] + indices.shape + x.shape[axis+1:]."""

    def infer(self, x: Value, indices: Value, *, axis: int = 0) -> TensorType:
        checks.indices(indices=indices)
        at = axis % x.rank
        return TensorType(x.dtype, x.shape[:at] + indices.shape + x.shape[at + 1 :])

    def links(self, x: Value, indices: Value, *, axis: int) -> Links:
        at = axis % x.rank
        rows = (Link(0, i, i + (indices.rank - 1) * (i > at)) for i in range(x.rank) if i != at)
        return (*rows, Link(0, at, None), *(Link(1, i, at + i) for i in range(indices.rank)))

    def numpy(self, x: Any, indices: Any, *, axis: int) -> Any:
        return np.take(x, indices, axis=axis)

    def torch(self, torch: Any, x: Any, indices: Any, *, axis: int) -> Any:
        # With a scalar index PyTorch would wait for the device to learn the number.
        rows = x[(..., indices.unsqueeze(0), *(slice(None),) * (-axis - 1))]
        return rows.squeeze(axis - indices.dim())

    def onnx(self, op: Any, x: Any, indices: Any, *, axis: int) -> Any:
        return op.Gather(x, indices, axis=axis)


class TakeAlongAxis(AlongAxis):
    """out[..., i, ...] = x[..., indices[..., i, ...], ...]: one element per index, along `axis`."""

    def infer(self, x: Value, indices: Value, *, axis: int = -1) -> TensorType:
        check(indices.dtype == i64, f"indices are {indices.dtype}, expected i64")
        at = axis % x.rank
        same = x.rank == indices.rank and all(
            a == b for i, (a, b) in enumerate(zip(x.shape, indices.shape, strict=False)) if i != at
        )
        check(same, f"indices {indices.type} must match x {x.type} outside axis {axis}")
        return TensorType(x.dtype, indices.shape)

    def links(self, x: Value, indices: Value, *, axis: int) -> Links:
        at = axis % x.rank
        taken = Link(0, at, at if _keeps_order(indices) else None)
        return (*along(x.shape, at, (taken,)), *along(indices.shape, -1, operand=1))

    def numpy(self, x: Any, indices: Any, *, axis: int) -> Any:
        return np.take_along_axis(x, indices, axis=axis)

    def torch(self, torch: Any, x: Any, indices: Any, *, axis: int) -> Any:
        return torch.take_along_dim(x, indices, dim=axis)

    def onnx(self, op: Any, x: Any, indices: Any, *, axis: int) -> Any:
        # Counted from the left: ONNX's own evaluator takes a negative axis for another one.
        return op.GatherElements(x, indices, axis=axis % len(x.shape))


def _keeps_order(indices: Value) -> bool:
    """Whether indices say how `compact` moves tokens: the order of those that count stays, so column j is its token."""
    v = indices
    while v.producer is not None and isinstance(v.producer.op, (Reshape, Expand)):
        (v,) = v.producer.arguments
    return v.producer is not None and v.producer.op.compacts


class Iota(Op):
    """start, start + 1, ..., `length` integers; both may be symbolic dimensions."""

    def infer(self, *, start: DimLike, length: DimLike, dtype: DType = i64) -> TensorType:
        check(isinstance(length, Dim) or length >= 0, f"length is {length}, expected at least 0")
        check(dtype != bool_, "dtype is bool, expected numbers")
        return TensorType(dtype, (length,))

    def links(self, *, start: DimLike, length: DimLike, dtype: DType) -> Links:
        return ()

    def numpy(self, *, start: int, length: int, dtype: DType) -> Any:
        return np.arange(start, start + length, dtype=dtype.numpy)

    def torch(self, torch: Any, *, start: Any, length: Any, dtype: Any, device: Any) -> Any:
        return torch.arange(start, start + length, dtype=dtype, device=device)

    def onnx(self, op: Any, *, start: DimLike, length: DimLike, dtype: DType) -> Any:
        numbers = op.Range(op.dim(start), op.dim(start + length), op.dim(1))
        return numbers if dtype == i64 else op.Cast(numbers, to=op.element_type(dtype))


reshape, transpose, expand, concat = op(Reshape), op(Transpose), op(Expand), op(Concat)
slice_, gather, take_along_axis, iota = op(Slice), op(Gather), op(TakeAlongAxis), op(Iota)
