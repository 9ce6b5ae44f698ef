"""Mixture of experts: the best k of a row of scores, and feed-forward blocks of which each token takes a few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import check
from ..flow import Link, Links, along
from ..graph import Node, Value
from ..op import Op, op
from ..ranges import Range
from ..types import Dim, DimLike, TensorType, bf16, f32, i64, product
from .checks import not_scalar, number, rank, same_dtype, typed
from .elementwise import constant
from .feed_forward import ACTIVATIONS, GatedFeedForward, activate_in_onnx, gated_feed_forward
from .logic import equal, where
from .reduce import sum as sum_

if TYPE_CHECKING:
    from ..layout import Layout


class Topk(Op):
    """(values, indices i64) of the k largest elements along the last axis, largest first; of equals the first counts.

    x [..., N] -> [..., k] twice.
    """

    def infer(self, x: Value, *, k: DimLike) -> tuple[TensorType, TensorType]:
        number(x=x)
        not_scalar(x=x)
        width = x.shape[-1]
        check(isinstance(k, Dim) or k > 0, f"k is {k}, expected at least 1")
        few = isinstance(k, Dim) or isinstance(width, Dim) or k <= width
        check(few, f"k is {k} but the last axis of x has {width} elements")
        values = TensorType(x.dtype, (*x.shape[:-1], k))
        return values, values.with_dtype(i64)

    shard = shard_rules.needs_all
    rounding: ClassVar[Mapping[str, float]] = {"x": 0.05}

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        assert given[0] is not None
        return (Range(given[0].low, given[0].high), Range())

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        """The places of the best; a sort keeps those of all elements."""
        whole = layout.bytes(node.arguments[0].type.with_dtype(i64))
        return reads.Saved((node.outputs[1],), whole - layout.bytes(node.outputs[1].type))

    def links(self, x: Value, *, k: DimLike) -> Links:
        last = x.rank - 1
        return tuple(link for i in (0, 1) for link in along(x.shape, last, (Link(0, last, None, i),), output=i))

    def flops(self, x: Value, *, k: DimLike) -> DimLike:
        return x.type.elements

    def numpy(self, x: Any, *, k: Any) -> tuple[Any, Any]:
        # A stable sort of the reversed row, read from its end: of equals the first comes first.
        order = (x.shape[-1] - 1 - np.argsort(x[..., ::-1], axis=-1, kind="stable"))[..., ::-1][..., :k]
        return np.take_along_axis(x, order, axis=-1), order.astype(np.int64)

    def torch(self, torch: Any, x: Any, *, k: Any) -> tuple[Any, Any]:
        # torch.topk promises no order among equals.
        found = torch.sort(x, dim=-1, descending=True, stable=True)
        return torch.narrow(found[0], -1, 0, k), torch.narrow(found[1], -1, 0, k)

    def onnx(self, op: Any, x: Any, *, k: DimLike) -> tuple[Any, Any]:
        # The standard's TopK takes no bf16 before opset 24; in f32 the order is the same.
        wide = op.Cast(x, to=op.element_type(f32)) if x.dtype == bf16 else x
        values, indices = op.TopK(wide, op.shape((k,)), axis=-1, outputs=2)
        return (values if wide is x else op.Cast(values, to=op.element_type(bf16))), indices


topk = op(Topk)


class Moe(Op):
    """sum over j of weights[..., j] * expert[indices[..., j]](x), each a gated feed-forward. (Shazeer et al. 2017)

    x [..., C]; weights and indices (i64) [..., k]: the experts of each token. experts: for each expert its w_gate
    [F,C], w_up [F,C] and w_down [C,F]. The body computes every expert for every token, with weight 0 for those that a
    token did not choose; lowerings compute each expert only for the tokens that chose it. activation: that of the
    experts.
    """

    choices = {"activation": ACTIVATIONS}

    def infer(self, x: Value, weights: Value, indices: Value, *experts: Value, activation: str = "silu") -> TensorType:
        check(indices.dtype == i64, f"indices are {indices.dtype}, expected i64")
        check(weights.shape == indices.shape, f"weights are {weights.type} but indices are {indices.type}")
        same_dtype(x.dtype, weights=weights)
        fits = weights.rank == x.rank and weights.shape[:-1] == x.shape[:-1]
        check(fits, f"weights are {weights.type}, expected a row for each token of x {x.type}")
        check(bool(experts) and len(experts) % 3 == 0, f"{len(experts)} weights of experts are given, expected 3 each")
        rank(2, **{f"experts[{i}]": w for i, w in enumerate(experts)})
        for i in range(0, len(experts), 3):
            for j in range(3):
                typed(experts[j].type, ", as of the first expert", **{f"experts[{i + j}]": experts[i + j]})
        made = GatedFeedForward().infer(x, *experts[:3], activation=activation)
        check(made == x.type, f"experts give {made.shape[-1]} channels, expected {x.shape[-1]} as x has")
        return x.type

    def body(self, x: Value, weights: Value, indices: Value, *experts: Value, activation: str) -> Value:
        total: Value | None = None
        zero = constant(value=0.0, dtype=weights.dtype)
        for i in range(0, len(experts), 3):
            chosen = equal(indices, constant(value=i // 3, dtype=i64))
            share = sum_(where(chosen, weights, zero), axis=-1, keepdims=True)
            part = gated_feed_forward(x, *experts[i : i + 3], activation=activation) * share
            total = part if total is None else total + part
        assert total is not None
        return total

    def onnx(self, op: Any, x: Any, weights: Any, indices: Any, *experts: Any, activation: str) -> Any:
        """Each expert reads the tokens that chose it; one that nobody chose multiplies no row. Results are added up in
        f32, which every kernel of ScatterND can."""
        narrow = x.dtype.bits < 32
        wide = f32 if narrow else x.dtype
        tokens, chosen = product(x.shape[:-1]), product(weights.shape)
        rows, flat = op.reshape(x, (tokens, x.shape[-1])), op.reshape(indices, (chosen,))
        shares = op.reshape(weights, (chosen, 1))
        each = op.dim(weights.shape[-1])
        y = op.Expand(op.constant(np.array(0, wide.numpy)), op.shape(rows.shape))
        for i in range(0, len(experts), 3):
            gate, up, down = map(op.transposed, experts[i : i + 3])
            uses = op.Reshape(op.NonZero(op.Equal(flat, op.constant(np.array(i // 3, np.int64)))), op.shape((-1,)))
            token = op.Div(uses, each)
            read = op.Gather(rows, token, axis=0)
            hidden = op.Mul(activate_in_onnx(op, op.MatMul(read, gate), activation), op.MatMul(read, up))
            made, share = op.MatMul(hidden, down), op.Gather(shares, uses, axis=0)
            if narrow:
                made, share = (op.Cast(part, to=op.element_type(f32)) for part in (made, share))
            made = op.Mul(made, share)
            y = op.ScatterND(y, op.Unsqueeze(token, op.constant(np.array([1], np.int64))), made, reduction="add")
        y = op.Reshape(y, op.shape(x.shape))
        return op.Cast(y, to=op.element_type(x.dtype)) if narrow else y

    def links(self, x: Value, weights: Value, indices: Value, *experts: Value, activation: str) -> Links:
        found: list[Link] = []
        for i, v in enumerate((x, weights, indices)):
            found += along(v.shape, v.rank - 1, (Link(i, v.rank - 1, None),), operand=i)
        return (*found, *(Link(3 + i, axis, None) for i in range(len(experts)) for axis in (0, 1)))

    def flops(self, x: Value, weights: Value, indices: Value, *experts: Value, activation: str) -> DimLike:
        """Of the experts that are chosen: k for each token."""
        chosen = product(weights.shape)
        return chosen * (6 * experts[0].shape[0] * x.shape[-1] + 4 * experts[0].shape[0] + 2 * x.shape[-1])


moe = op(Moe)
