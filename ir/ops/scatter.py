"""Primitives that move elements to and from places that are computed, and padding with a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import backward_reads as reads
from .. import range_rules as rules
from .. import shard_rules
from ..errors import check, did_you_mean
from ..flow import Link, Links, along
from ..graph import Node, Value
from ..op import Op, op, unmoved
from ..ranges import Range
from ..types import Dim, DimLike, TensorType, bool_, i64
from .checks import same_dtype
from .reduce import AlongAxis, Reduce

_indices: Any = np.indices
_AT: Mapping[str, Callable[..., None]] = {
    "add": np.add.at,
    "mul": np.multiply.at,
    "max": np.maximum.at,
    "min": np.minimum.at,
}
"""How an update is joined with what is there; "none" replaces it."""
_TORCH = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


class Prod(Reduce):
    """Product of x [...] over one axis, of floats or i64. axis: which one. keepdims: it stays, with length 1."""

    torch_name, onnx_name = "prod", "ReduceProd"
    backward_reads = reads.both_ends

    def infer(self, x: Value, *, axis: int = -1, keepdims: bool = True) -> TensorType:
        check(x.dtype.is_float or x.dtype == i64, f"x is {x.dtype}, expected a floating-point type or i64: cast it")
        at = axis % x.rank
        return TensorType(x.dtype, x.shape[:at] + ((1,) if keepdims else ()) + x.shape[at + 1 :])


Widths = tuple[tuple[DimLike, DimLike], ...]
"""Places (before, after) for each axis."""


class Pad(Op):
    """x [...] with places of `value` before and after each axis. widths: (before, after) for each axis."""

    backward_reads = reads.nothing
    shard = shard_rules.needs_all
    flops = unmoved

    def infer(self, x: Value, *, widths: Widths, value: float = 0.0) -> TensorType:
        check(len(widths) == x.rank, f"widths are given for {len(widths)} axes, but x has {x.rank}")
        for pair in widths:
            whole = all(isinstance(d, Dim) or d >= 0 for d in pair)
            check(whole, f"widths ({pair[0]}, {pair[1]}) are negative: slice")
        return TensorType(x.dtype, tuple(a + d + b for d, (a, b) in zip(x.shape, widths, strict=True)))

    def links(self, x: Value, *, widths: Widths, value: float) -> Links:
        return tuple(Link(0, i, i, shift=before) for i, (before, _) in enumerate(widths))

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        assert given[0] is not None
        value: float = node.attributes["value"]
        return (Range(min(given[0].low, value), max(given[0].high, value)),)

    def numpy(self, x: Any, *, widths: Any, value: float) -> Any:
        return np.pad(x, widths, constant_values=x.dtype.type(value)) if x.ndim else x

    def torch(self, torch: Any, x: Any, *, widths: Any, value: float) -> Any:
        return torch.nn.functional.pad(x, [n for pair in reversed(widths) for n in pair], value=value)

    def onnx(self, op: Any, x: Any, *, widths: Widths, value: float) -> Any:
        ends = op.shape([before for before, _ in widths] + [after for _, after in widths])
        return op.Pad(x, ends, op.constant(np.array(value, x.dtype.numpy)), mode="constant")


def _check_reduction(reduction: str, x: Value) -> None:
    known = ("none", *_AT)
    check(
        reduction in known, f"reduction is {reduction!r}, expected {', '.join(known)}{did_you_mean(reduction, known)}"
    )
    check(reduction == "none" or x.dtype != bool_, f"x is bool, which reduction={reduction!r} does not join")


class Scatter(AlongAxis):
    """x [...] with updates [...] at indices i64 [...], each at its place but for `axis`, where it goes to its index.

    reduction: what stands there and the update are joined by add, mul, max or min, or replaced (none).
    """

    backward_reads = reads.operands
    shard = shard_rules.needs_all
    flops = unmoved

    def infer(self, x: Value, indices: Value, updates: Value, *, axis: int = -1, reduction: str = "none") -> TensorType:
        check(indices.dtype == i64, f"indices are {indices.dtype}, expected i64")
        same_dtype(x.dtype, updates=updates)
        check(indices.shape == updates.shape, f"indices are {indices.type} but updates are {updates.type}")
        check(x.rank == indices.rank, f"x has rank {x.rank} but indices have {indices.rank}")
        _check_reduction(reduction, x)
        return x.type

    def links(self, x: Value, indices: Value, updates: Value, *, axis: int, reduction: str) -> Links:
        at = axis % x.rank
        moved = (along(v.shape, at, (Link(i, at, None),), operand=i) for i, v in enumerate((indices, updates), 1))
        return (*(Link(0, i, i) for i in range(x.rank)), *(link for links in moved for link in links))

    def numpy(self, x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
        y = np.array(x)
        places: list[Any] = list(_indices(indices.shape, sparse=True))
        places[axis] = indices
        if reduction == "none":
            y[tuple(places)] = updates
        else:
            _AT[reduction](y, tuple(places), updates)
        return y

    def torch(self, torch: Any, x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
        if reduction == "none":
            return torch.scatter(x, axis, indices, updates)
        return torch.scatter_reduce(x, axis, indices, updates, reduce=_TORCH[reduction])

    def onnx(self, op: Any, x: Any, indices: Any, updates: Any, *, axis: int, reduction: str) -> Any:
        # Counted from the left: ONNX's own evaluator takes a negative axis for another one.
        return op.ScatterElements(x, indices, updates, axis=axis % len(x.shape), reduction=reduction)


def _check_places(x: Value, indices: Value) -> int:
    """How many of the first axes of x the rows of indices [..., n] say. Raises OpError."""
    check(indices.dtype == i64, f"indices are {indices.dtype}, expected i64")
    width = indices.shape[-1] if indices.rank else 0
    fits = isinstance(width, int) and 1 <= width <= x.rank
    check(fits, f"indices {indices.type} must have 1 to {x.rank} numbers in a row, for axes of x")
    assert isinstance(width, int)
    return width


class GatherNd(Op):
    """x[indices[..., 0], indices[..., 1], ...], of indices i64 [..., n]: n numbers choose along the first n axes."""

    backward_reads, ranges = reads.second, rules.taken
    shard = shard_rules.needs_all
    flops = unmoved

    def infer(self, x: Value, indices: Value) -> TensorType:
        width = _check_places(x, indices)
        return TensorType(x.dtype, indices.shape[:-1] + x.shape[width:])

    def links(self, x: Value, indices: Value) -> Links:
        width, before = _check_places(x, indices), indices.rank - 1
        chosen = (Link(0, i, None) if i < width else Link(0, i, i - width + before) for i in range(x.rank))
        return (*chosen, *(Link(1, i, i) for i in range(before)), Link(1, before, None))

    def numpy(self, x: Any, indices: Any) -> Any:
        return x[tuple(np.moveaxis(indices, -1, 0))]

    def torch(self, torch: Any, x: Any, indices: Any) -> Any:
        return x[torch.unbind(indices, -1)]

    def onnx(self, op: Any, x: Any, indices: Any) -> Any:
        return op.GatherND(x, indices)


class ScatterNd(Op):
    """x [...] with updates at indices i64 [..., n], whose rows choose along the first n axes of x.

    updates: [..., *rest of x's axes]. reduction: what stands there is replaced (none), or added to (add).
    """

    backward_reads = reads.second
    shard = shard_rules.needs_all
    flops = unmoved

    def infer(self, x: Value, indices: Value, updates: Value, *, reduction: str = "none") -> TensorType:
        width = _check_places(x, indices)
        same_dtype(x.dtype, updates=updates)
        wanted = indices.shape[:-1] + x.shape[width:]
        check(updates.shape == wanted, f"updates are {updates.type}, expected [{','.join(map(str, wanted))}]")
        _check_reduction(reduction, x)
        check(reduction in ("none", "add"), f"reduction is {reduction!r}, expected none or add")
        return x.type

    def links(self, x: Value, indices: Value, updates: Value, *, reduction: str) -> Links:
        width, before = _check_places(x, indices), indices.rank - 1
        own = (Link(0, i, i) for i in range(x.rank))
        read = (Link(1, i, None) for i in range(indices.rank))
        new = (Link(2, i, None if i < before else i - before + width) for i in range(updates.rank))
        return (*own, *read, *new)

    def numpy(self, x: Any, indices: Any, updates: Any, *, reduction: str) -> Any:
        y, places = np.array(x), tuple(np.moveaxis(indices, -1, 0))
        if reduction == "add":
            np.add.at(y, places, updates)
        else:
            y[places] = updates
        return y

    def torch(self, torch: Any, x: Any, indices: Any, updates: Any, *, reduction: str) -> Any:
        return torch.index_put(x, torch.unbind(indices, -1), updates, accumulate=reduction == "add")

    def onnx(self, op: Any, x: Any, indices: Any, updates: Any, *, reduction: str) -> Any:
        return op.ScatterND(x, indices, updates, reduction=reduction)


prod, pad, scatter = op(Prod), op(Pad), op(Scatter)
gather_nd, scatter_nd = op(GatherNd), op(ScatterNd)
