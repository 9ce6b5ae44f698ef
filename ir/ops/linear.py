"""Matrix product, linear layer and embedding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import check
from ..flow import Link, Links, aligned
from ..graph import Node, Value
from ..op import Op, op
from ..ranges import Range
from ..shard_rules import Cut, Cuts, Stop, first_cut
from ..types import DimLike, TensorType, broadcast
from .checks import indices, not_scalar, rank, same_dtype, typed
from .reduce import accumulator
from .shape import gather, scaled, transpose

if TYPE_CHECKING:
    from ..layout import Layout


class Matmul(Op):
    """x @ y over the last two axes, the others broadcast: x [...,M,K], y [...,K,N] -> [...,M,N]."""

    heavy = True
    autocast = True
    backward_reads = reads.each_other
    shard = shard_rules.needs_all

    def infer(self, x: Value, y: Value) -> TensorType:
        same_dtype(x.dtype, y=y)
        check(x.rank >= 2 and y.rank >= 2, f"x has rank {x.rank} and y rank {y.rank}, expected at least 2")
        check(x.shape[-1] == y.shape[-2], f"last axis of x is {x.shape[-1]} but y has {y.shape[-2]} rows")
        batch = broadcast(x.shape[:-2], y.shape[:-2])
        check(batch is not None, f"batch axes of {x.type} and {y.type} do not broadcast")
        return TensorType(x.dtype, (*(batch or ()), x.shape[-2], y.shape[-1]))

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        x, y = (r for r in given if r is not None)
        inner = node.value("x").shape[-1]
        straight = inner * x.most * y.most if isinstance(inner, int) and x.most and y.most else math.inf
        most = min(straight, x.rows * y.columns if x.rows and y.columns else 0.0)
        return (Range(-most, most),)

    def links(self, x: Value, y: Value) -> Links:
        rank = max(x.rank, y.rank)
        rows, columns = x.shape[:-2], y.shape[:-2]
        return (
            *aligned([rows, columns], rank - 2),
            Link(0, x.rank - 2, rank - 2),
            Link(0, x.rank - 1, None),
            Link(1, y.rank - 2, None),
            Link(1, y.rank - 1, rank - 1),
        )

    def flops(self, x: Value, y: Value) -> DimLike:
        return 2 * self.infer(x, y).elements * x.shape[-1]

    def numpy(self, x: Any, y: Any) -> Any:
        return np.matmul(accumulator(x), accumulator(y)).astype(x.dtype)

    def torch(self, torch: Any, x: Any, y: Any) -> Any:
        return torch.matmul(x, y)

    def onnx(self, op: Any, x: Any, y: Any) -> Any:
        return op.MatMul(x, y)

    def times(self, node: Node, number: Value) -> Value | None:
        """(q @ k) * c is (q * c) @ k, for batches of matrices: attention scores."""
        if node.output.rank < 4:
            return None
        return matmul(scaled(node.value("x"), number), node.value("y"))


matmul = op(Matmul)


class Linear(Op):
    """y = x @ w.T + b, as torch.nn.Linear: x [...,in], w [out,in], b [out] -> [...,out].

    transposed: w is stored as [in,out] (GPT-2's Conv1D).
    """

    autocast = True

    def infer(self, x: Value, w: Value, b: Value | None = None, *, transposed: bool = False) -> TensorType:
        not_scalar(x=x)
        rank(2, w=w)
        same_dtype(x.dtype, w=w)
        rows, columns = w.shape if transposed else (w.shape[1], w.shape[0])
        layout = "[in, out]" if transposed else "[out, in]"
        check(x.shape[-1] == rows, f"last axis of x is {x.shape[-1]} but w expects {rows} (w is {layout})")
        typed(TensorType(x.dtype, (columns,)), ", the channels of w", b=b)
        return TensorType(x.dtype, (*x.shape[:-1], columns))

    def body(self, x: Value, w: Value, b: Value | None = None, *, transposed: bool = False) -> Value:
        y = matmul(x, w if transposed else transpose(w, permutation=(1, 0)))
        return y if b is None else y + b

    def torch(self, torch: Any, x: Any, w: Any, b: Any = None, *, transposed: bool = False) -> Any:
        return torch.nn.functional.linear(x, w.t() if transposed else w, b)

    def onnx(self, op: Any, x: Any, w: Any, b: Any = None, *, transposed: bool = False) -> Any:
        y = op.MatMul(x, w if transposed else op.transposed(w))
        return y if b is None else op.Add(y, b)

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        x, w = node.value("x"), node.value("w")
        wanted = (w,) if x in layout.learns else ()
        if w not in layout.learns:
            return reads.Saved(wanted)
        # Rows that do not lie together are copied first, and the copy is what is kept.
        matrix = (layout.rows(x), layout.size(x.shape[-1]))
        rows = reads.viewed(layout.shape(x.shape), layout.strides[x], matrix)
        return reads.Saved((x, *wanted)) if rows is not None else reads.Saved(wanted, layout.bytes(x.type))

    def shard(self, node: Node, known: Cuts) -> dict[Value, Cut]:
        """Column-parallel: output channels are cut, the input is whole. Row-parallel: the other way round."""
        x, w, b = node.value("x"), node.value("w"), node["b"]
        # Axes of w: channels in, channels out.
        rows, columns = (-2, -1) if node.attributes["transposed"] else (-1, -2)
        if is_row_parallel(node, known):
            if node.output in known:
                raise Stop(f"{node} cannot be cut at both ends")
            return {w: Cut(rows, known[x].sections)}
        cut = known[node.output] if node.output in known else Cut(-1, known[w].sections) if w in known else None
        if cut is None or cut.axis != -1 or x in known or (w in known and known[w].axis != columns):
            raise Stop(f"{node} has no cut channels")
        found = {w: Cut(columns, cut.sections), node.output: cut}
        return found if b is None else {**found, b: Cut(-1, cut.sections)}


def is_row_parallel(node: Node, known: Cuts) -> bool:
    """Whether a node is a linear layer whose input channels are cut."""
    if not isinstance(node.op, Linear):
        return False
    x = node.value("x")
    return x in known and known[x].axis == -1


class Embedding(Op):
    """Rows of table [V,C] for integer ids [...]: [...,C]. (Bengio et al. 2003)"""

    backward_reads = reads.first

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        assert given[1] is not None
        return (Range(given[1].low, given[1].high, given[1].rows),)

    def infer(self, ids: Value, table: Value) -> TensorType:
        indices(ids=ids)
        rank(2, table=table)
        return TensorType(table.dtype, (*ids.shape, table.shape[1]))

    def body(self, ids: Value, table: Value) -> Value:
        return gather(table, ids, axis=-2)

    def torch(self, torch: Any, ids: Any, table: Any) -> Any:
        return torch.nn.functional.embedding(ids, table)

    def shard(self, node: Node, known: Cuts) -> dict[Value, Cut]:
        _, cut = first_cut(node, known)
        if cut.axis != -1:
            raise Stop(f"{node} reads whole rows of the vocabulary")
        return {node.value("table"): cut, node.output: cut}


linear, embedding = op(Linear), op(Embedding)
