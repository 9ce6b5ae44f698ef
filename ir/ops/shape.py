"""Shape primitives: reshape, transpose, expand, concat, slice, gather, iota."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .. import backward_reads as reads
from .. import range_rules as rules
from .. import shard_rules
from ..canonical import made_by, same_type
from ..errors import check
from ..flow import Link, Links, aligned, along, regrouped
from ..graph import Attributes, Node, Value
from ..op import Op, op, unmoved
from ..shard_rules import Cut, Cuts, Stop, first_cut
from ..types import Dim, DimLike, DType, Shape, TensorType, bool_, broadcast, cancelled, exact_div, i64, product
from . import checks
from .reduce import AlongAxis


def _merged_reshapes(node: Node) -> Value | None:
    inner = made_by(node.value("x"), Reshape)
    return reshape(inner.value("x"), shape=node.attributes["shape"]) if inner else None


class Reshape(Op):
    """The same elements of x [...] in another shape; one -1 stands for what is left."""

    canonical = (same_type, _merged_reshapes)
    backward_reads = reads.nothing
    flops = unmoved

    def complete(self, x: Value, *, shape: Shape) -> dict[str, Any]:
        if -1 not in shape:
            return {"shape": shape}
        check(shape.count(-1) == 1, f"shape [{_show(shape)}] has {shape.count(-1)} dimensions that are -1")
        left = exact_div(*cancelled(x.shape, tuple(d for d in shape if d != -1)))
        return {"shape": tuple(left if d == -1 else d for d in shape)}

    def infer(self, x: Value, *, shape: Shape) -> TensorType:
        check(all(isinstance(d, Dim) or d >= 0 for d in shape), f"shape [{_show(shape)}] has a negative dimension")
        check(x.type.elements == product(shape), f"{x.type} has {x.type.elements} elements, not {product(shape)}")
        return TensorType(x.dtype, shape)

    def links(self, x: Value, *, shape: Shape) -> Links:
        return regrouped(x.shape, shape)

    ranges = rules.regrouped

    def numpy(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        return np.reshape(x, shape)

    def torch(self, torch: Any, x: Any, *, shape: Any) -> Any:
        return torch.reshape(x, shape)

    def onnx(self, op: Any, x: Any, *, shape: Shape) -> Any:
        return op.reshape(x, shape)

    def view(
        self, node: Node, strides: reads.Strides, old: tuple[int, ...], new: tuple[int, ...]
    ) -> reads.Strides | None:
        return reads.viewed(old, strides, new)

    def shard(self, node: Node, known: Cuts) -> dict[Value, Cut]:
        x, y = node.value("x"), node.output
        if x in known:
            return {y: _moved(node, known[x], x.shape, y.shape)}
        return {x: _moved(node, known[y], y.shape, x.shape)}

    def shard_attributes(self, node: Node, cuts: Cuts, size: int) -> Attributes:
        y = node.output
        return {"shape": cuts[y].local(y.type, size).shape if y in cuts else y.shape}


def _moved(node: Node, cut: Cut, before: Shape, after: Shape) -> Cut:
    """Where the cut axis lies in another shape of the same elements: as it was, split, or merged with what follows."""
    at = cut.axis % len(before)
    ahead, size = product(before[:at]), before[at]
    for to, found in enumerate(after):
        if found == 1 or product(after[:to]) != ahead:
            continue
        if found == size:
            return replace(cut, axis=to - len(after))
        split = any(product(after[to:end]) == size for end in range(to + 2, len(after) + 1))
        merged = any(product(before[at:end]) == found for end in range(at + 2, len(before) + 1))
        if (split or merged) and len(cut.sections) == 1:
            return Cut(to - len(after), (found,))
    raise Stop(f"{node} mixes the cut axis with others")


def _show(shape: Shape) -> str:
    return ",".join(map(str, shape))


def _one_transpose(node: Node) -> Value | None:
    permutation, x = node.attributes["permutation"], node.value("x")
    if permutation == tuple(range(len(permutation))):
        return x
    inner = made_by(x, Transpose)
    if inner is None:
        return None
    first = inner.attributes["permutation"]
    return transpose(inner.value("x"), permutation=tuple(first[i] for i in permutation))


def scaled(x: Value, number: Value) -> Value:
    """x * number in normal form: below the transposes of x."""
    inner = made_by(x, Transpose)
    if inner is None:
        return x * number
    return transpose(scaled(inner.value("x"), number), permutation=inner.attributes["permutation"])


class Transpose(Op):
    """Axes of x [...] in the order of `permutation`."""

    canonical = (_one_transpose,)
    backward_reads = reads.nothing
    flops = unmoved

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

    def times(self, node: Node, number: Value) -> Value | None:
        return scaled(node.output, number)

    def view(
        self, node: Node, strides: reads.Strides, old: tuple[int, ...], new: tuple[int, ...]
    ) -> reads.Strides | None:
        permutation: tuple[int, ...] = node.attributes["permutation"]
        return tuple(strides[i] for i in permutation)

    def shard(self, node: Node, known: Cuts) -> dict[Value, Cut]:
        x, y, order = node.value("x"), node.output, node.attributes["permutation"]
        if x in known:
            return {y: replace(known[x], axis=order.index(known[x].axis % x.rank) - x.rank)}
        return {x: replace(known[y], axis=order[known[y].axis] - x.rank)}

    ranges = rules.turned


class Expand(Op):
    """x [...] broadcast to `shape`."""

    canonical = (same_type,)
    backward_reads = reads.nothing
    shard = shard_rules.needs_all
    flops = unmoved

    def infer(self, x: Value, *, shape: Shape) -> TensorType:
        check(broadcast(x.shape, shape) == shape, f"{x.type} does not broadcast to [{_show(shape)}]")
        return TensorType(x.dtype, shape)

    def links(self, x: Value, *, shape: Shape) -> Links:
        return aligned([x.shape], len(shape))

    ranges = rules.expanded

    def numpy(self, x: Any, *, shape: tuple[int, ...]) -> Any:
        return np.broadcast_to(x, shape)

    def torch(self, torch: Any, x: Any, *, shape: Any) -> Any:
        return torch.broadcast_to(x, shape)

    def onnx(self, op: Any, x: Any, *, shape: Shape) -> Any:
        return op.Expand(x, op.shape(shape))

    def view(
        self, node: Node, strides: reads.Strides, old: tuple[int, ...], new: tuple[int, ...]
    ) -> reads.Strides | None:
        added = len(new) - len(old)
        kept = [s if a == b else 0 for s, a, b in zip(strides, old, new[added:], strict=True)]
        return (*(0,) * added, *kept)


def _one_operand(node: Node) -> Value | None:
    return node.arguments[0] if len(node.operands) == 1 else None


class Concat(AlongAxis):
    """The operands xs [...] joined along an axis."""

    canonical = (_one_operand,)

    backward_reads, ranges = reads.nothing, rules.joined
    flops = unmoved

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

    def shard(self, node: Node, known: Cuts) -> dict[Value, Cut]:
        _, cut = first_cut(node, known)
        if cut.axis == node.attributes["axis"]:
            raise Stop(f"{node} joins parts along the cut axis")
        return dict.fromkeys([*node.arguments, node.output], cut)


class Slice(AlongAxis):
    """x[start : start + length] along one axis."""

    ranges = rules.parts
    canonical = (same_type,)
    backward_reads = reads.nothing
    flops = unmoved

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

    def view(
        self, node: Node, strides: reads.Strides, old: tuple[int, ...], new: tuple[int, ...]
    ) -> reads.Strides | None:
        return strides

    def shard(self, node: Node, known: Cuts) -> dict[Value, Cut]:
        x, y = node.value("x"), node.output
        _, cut = first_cut(node, known)
        if cut.axis != node.attributes["axis"]:
            return {x: cut, y: cut}
        if x not in known:
            raise Stop(f"{node} takes a part of an axis that is not known to be cut in sections")
        first, count = self.sections(node, known[x])
        return {y: replace(cut, sections=known[x].sections[first : first + count])}

    def shard_attributes(self, node: Node, cuts: Cuts, size: int) -> Attributes:
        """Along the cut axis, start and length within the sections as one rank has them."""
        x, attributes = node.value("x"), dict(node.attributes)
        if x in cuts and cuts[x].axis == attributes["axis"]:
            first, _ = self.sections(node, cuts[x])
            attributes["start"] = sum((exact_div(s, size) for s in cuts[x].sections[:first]), start=0)
            attributes["length"] = exact_div(attributes["length"], size)
        return attributes

    def sections(self, node: Node, cut: Cut) -> tuple[int, int]:
        """(first section, how many) that a slice along the cut axis takes. Raises Stop if it cuts one in two."""
        start, end = node.attributes["start"], node.attributes["start"] + node.attributes["length"]
        edges = [sum(cut.sections[:i], start=0) for i in range(len(cut.sections) + 1)]
        if start not in edges or end not in edges:
            raise Stop(f"{node} takes [{start}:{end}], which is not a section of {list(cut.sections)}")
        return edges.index(start), edges.index(end) - edges.index(start)


class Gather(AlongAxis):
    """Rows of x [...] along `axis`, chosen by integer indices [...].

    The shape is x.shape[:axis] + indices.shape + x.shape[axis+1:].
    """

    backward_reads, ranges = reads.second, rules.rows
    shard = shard_rules.needs_all
    flops = unmoved

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

    backward_reads, ranges = reads.second, rules.taken
    shard = shard_rules.needs_all
    flops = unmoved

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
        # take_along_dim would copy indices, also where one row of them is broadcast.
        return torch.gather(x, axis, indices)

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
    """start, start + 1, ..., `length` integers; both may be symbolic dimensions. dtype: their type."""

    backward_reads = reads.nothing
    shard = shard_rules.needs_all
    flops = unmoved

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
