"""Sequence mixers with a state of fixed size: the causal depthwise convolution and the selective state space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import check
from ..flow import Link, Links
from ..graph import Node, Value
from ..op import Op, op
from ..types import DimLike, TensorType, bool_, exact_div, i64
from .checks import floating, rank, same_dtype, typed
from .elementwise import cast, constant, exp
from .linear import matmul
from .logic import less, where
from .recurrent import compact
from .reduce import cumsum
from .shape import concat, expand, iota, reshape, slice_, take_along_axis, transpose

if TYPE_CHECKING:
    from ..layout import Layout

CHUNK = 64
"""Most steps that PyTorch and ONNX read at once in the quadratic form."""


def _links_of_tokens(*numbers: int) -> Links:
    """Links of operands [B,S,...]: y [B,S,...] reads the steps up to each, the state after them all steps."""
    rows = (Link(i, 0, 0, output) for i in numbers for output in (0, 1))
    steps = (link for i in numbers for link in (Link(i, 1, 1, upto=True), Link(i, 1, None, 1)))
    return (*rows, *steps)


class CausalConv(Op):
    """y[t] = b + sum over i of w[:, i] x[t - k + 1 + i], each channel by itself. (LeCun 1989; Poli et al. 2023)

    x [B,S,C], w [C,k], b [C]. tail [B,k-1,C]: the inputs before x (None: zeros). mask bool [B,S]: the steps that
    count; the others are skipped as if they were not there, and y is 0 there. Outputs: y [B,S,C], then the tail for
    the next call.
    """

    shard = shard_rules.needs_all
    sensitive = True
    states = {"tail": 1}
    state_names = {"tail": "conv"}

    def links(
        self, x: Value, w: Value, b: Value | None = None, tail: Value | None = None, mask: Value | None = None
    ) -> Links:
        return _links_of_tokens(0) if mask is None else _links_of_tokens(0, 4)

    def infer(
        self, x: Value, w: Value, b: Value | None = None, tail: Value | None = None, mask: Value | None = None
    ) -> tuple[TensorType, TensorType]:
        floating(x=x)
        rank(3, x=x)
        rank(2, w=w)
        same_dtype(x.dtype, w=w)
        batch, steps, width = x.shape
        taps = w.shape[1]
        check(w.shape[0] == width, f"w has {w.shape[0]} rows but x has {width} channels")
        check(isinstance(taps, int) and taps > 1, f"w has {taps} taps, expected at least 2")
        typed(TensorType(x.dtype, (width,)), ", the channels of x", b=b)
        state = TensorType(x.dtype, (batch, taps - 1, width))
        typed(state, f", what {taps} taps remember", tail=tail)
        typed(TensorType(bool_, (batch, steps)), ", one per step of x", mask=mask)
        return x.type, state

    def body(
        self, x: Value, w: Value, b: Value | None = None, tail: Value | None = None, mask: Value | None = None
    ) -> tuple[Value, Value]:
        (batch, steps, width), taps = x.shape, int(w.shape[1])  # type: ignore[arg-type]
        zero = constant(value=0.0, dtype=x.dtype)
        if tail is None:
            tail = expand(zero, shape=(batch, taps - 1, width))
        if mask is None:
            inputs = concat(tail, x, axis=1)
            last = slice_(inputs, axis=1, start=steps, length=taps - 1)
            return self.taps(inputs, w, b, steps), last
        order, place, lengths = compact(mask)
        inputs = concat(tail, _rows(x, order), axis=1)
        newest = reshape(cast(lengths, dtype=i64), shape=(batch, 1)) + iota(start=0, length=taps - 1)
        y = _rows(self.taps(inputs, w, b, steps), place)
        return where(reshape(mask, shape=(batch, steps, 1)), y, zero), _rows(inputs, newest)

    @staticmethod
    def taps(inputs: Value, w: Value, b: Value | None, steps: DimLike) -> Value:
        """The sum over taps; inputs [B,k-1+S,C] begin with the tail."""
        columns = transpose(w, permutation=(1, 0))
        y = b
        for i in range(int(w.shape[1])):  # type: ignore[arg-type]
            tap = reshape(slice_(columns, axis=0, start=i, length=1), shape=(w.shape[0],))
            part = slice_(inputs, axis=1, start=i, length=steps) * tap
            y = part if y is None else part + y
        assert y is not None
        return y

    def flops(self, x: Value, w: Value, *_: Value | None) -> DimLike:
        return 2 * x.type.elements * w.shape[1]


def _rows(x: Value, indices: Value) -> Value:
    """Steps of x [B,S,C] by their numbers [B,N]."""
    batch, count = indices.shape
    wide = expand(reshape(indices, shape=(batch, count, 1)), shape=(batch, count, x.shape[2]))
    return take_along_axis(x, wide, axis=1)


class StateSpace(Op):
    """h[t] = exp(decay[t]) h[t-1] + x[t] b[t]^T and y[t] = h[t] c[t], for each head. (Dao & Gu 2024: Mamba 2)

    x [B,S,H,P]; decay [B,S,H], the logarithm of what is kept; b and c [B,S,G,N], H a multiple of G; state [B,H,P,N]:
    h before the first step (None: zeros). A step of which x and decay are 0 leaves h as it is. Outputs: y [B,S,H,P],
    then the last h. The body is the quadratic, dual form: y = (c b^T * kept) x, with kept [S,S] the product of what
    all steps between two keep. Its logarithm is a sum of decays, never a difference of two sums.
    """

    shard = shard_rules.needs_all
    sensitive = True
    states = {"state": 1}
    state_names = {"state": "ssm"}

    def links(self, x: Value, *operands: Value | None) -> Links:
        return _links_of_tokens(0, 1, 2, 3)

    def infer(
        self, x: Value, decay: Value, b: Value, c: Value, state: Value | None = None
    ) -> tuple[TensorType, TensorType]:
        floating(x=x)
        rank(4, x=x, b=b)
        batch, steps, heads, width = x.shape
        groups, size = b.shape[2:]
        exact_div(heads, groups)
        typed(TensorType(x.dtype, (batch, steps, heads)), ", one per step and head of x", decay=decay)
        typed(TensorType(x.dtype, (batch, steps, groups, size)), ", one row per step of x and group", b=b, c=c)
        last = TensorType(x.dtype, (batch, heads, width, size))
        typed(last, ", one per head of x", state=state)
        return x.type, last

    def body(self, x: Value, decay: Value, b: Value, c: Value, state: Value | None = None) -> tuple[Value, Value]:
        batch, steps, heads, width = x.shape
        groups, size = b.shape[2:]
        each = exact_div(heads, groups)
        by_head = transpose(decay, permutation=(0, 2, 1))
        sums = self.sums(by_head)
        split = (batch, groups, each)
        values = reshape(transpose(x, permutation=(0, 2, 1, 3)), shape=(*split, steps, width))
        # One row of b and c serves the heads of a group.
        keys = reshape(transpose(b, permutation=(0, 2, 1, 3)), shape=(batch, groups, 1, steps, size))
        queries = reshape(transpose(c, permutation=(0, 2, 1, 3)), shape=(batch, groups, 1, steps, size))
        step = iota(start=0, length=steps)
        later = less(reshape(step, shape=(steps, 1)), step)
        kept = where(later, constant(value=0.0, dtype=x.dtype), exp(sums))
        scores = matmul(queries, transpose(keys, permutation=(0, 1, 2, 4, 3)))
        y = matmul(scores * reshape(kept, shape=(*split, steps, steps)), values)
        to_end = exp(slice_(sums, axis=2, start=steps - 1, length=1))
        weighted = transpose(values, permutation=(0, 1, 2, 4, 3)) * reshape(to_end, shape=(*split, 1, steps))
        last = matmul(weighted, keys)
        if state is not None:
            first = reshape(state, shape=(*split, width, size))
            since = reshape(exp(cumsum(by_head, axis=-1)), shape=(*split, steps, 1))
            y = y + matmul(queries, transpose(first, permutation=(0, 1, 2, 4, 3))) * since
            last = last + first * slice_(since, axis=3, start=steps - 1, length=1)
        y = transpose(reshape(y, shape=(batch, heads, steps, width)), permutation=(0, 2, 1, 3))
        return y, reshape(last, shape=(batch, heads, width, size))

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        """What the steps of `torch` keep, padded copies of the operands among it; counted in a run of them."""
        x, b = node.arguments[0], node.arguments[2]
        batch, steps, heads, width = layout.shape(x.shape)
        groups, size = layout.shape(b.shape[2:])
        length = min(steps, CHUNK)
        chunks = -(-steps // length)
        tokens, states = batch * chunks * length, batch * (chunks + 1) * heads * width * size
        squares = tokens * length * (3 * heads + groups)
        numbers = squares + 2 * states + tokens * (4 * heads * width + 4 * groups * size + heads)
        return reads.Saved(internal=numbers * x.dtype.bits // 8)

    def torch(self, torch: Any, x: Any, decay: Any, b: Any, c: Any, state: Any = None) -> tuple[Any, Any]:
        """The dual form in each chunk, and between chunks the same form over their last states.

        Values are [B,G,chunks,H/G,steps,...]; b and c serve all heads of a group.
        """
        batch, steps, heads, groups = x.size(0), x.size(1), x.size(2), b.size(2)
        length = torch.sym_min(steps, CHUNK)
        missing, pad = -steps % length, torch.nn.functional.pad
        x, b, c = (pad(y, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, length)) for y in (x, b, c))
        decay = pad(decay, (0, 0, 0, missing)).unflatten(1, (-1, length)).unflatten(3, (groups, -1))
        x, decay = x.unflatten(3, (groups, -1)).permute(0, 3, 1, 4, 2, 5), decay.permute(0, 3, 1, 4, 2)
        b, c = (y.permute(0, 3, 1, 2, 4) for y in (b, c))
        sums, since = _segment_sums(torch, decay, length), torch.cumsum(decay, -1)
        scores = torch.matmul(c, b.transpose(-1, -2)).unsqueeze(3)
        y = torch.matmul(scores * sums.exp().tril(), x)
        to_end = sums.select(-2, -1).exp().unsqueeze(-1)
        made = torch.matmul((x * to_end).transpose(-1, -2).flatten(3, 4), b).unflatten(3, (heads // groups, -1))
        if state is None:
            state = x.new_zeros((batch, heads, x.size(-1), b.size(-1)))
        states = torch.cat([state.unflatten(1, (groups, -1)).unsqueeze(2), made], 2)
        whole = pad(since.select(-1, -1).transpose(-1, -2), (1, 0))
        kept = _segment_sums(torch, whole, whole.size(-1)).exp().tril()
        states = torch.einsum("bgrzc,bgcrpn->bgzrpn", kept, states)
        before = torch.narrow(states, 2, 0, states.size(2) - 1).flatten(3, 4).transpose(-1, -2)
        carried = torch.matmul(c, before).unflatten(-1, (heads // groups, -1))
        carried = carried * since.exp().transpose(-1, -2).unsqueeze(-1)
        y = (y.transpose(3, 4) + carried).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2, 3)
        return torch.narrow(y, 1, 0, steps), states.select(2, -1).flatten(1, 2)

    def onnx(self, op: Any, x: Any, decay: Any, b: Any, c: Any, state: Any = None) -> tuple[Any, Any]:
        """As in PyTorch; a chunk has no more steps than there are. Values are [B,G,H/G,chunks,steps,...]."""
        batch, steps, heads, width = x.shape
        groups, size = b.shape[2:]
        each = exact_div(heads, groups)
        chunks = _Chunks(op, batch, steps, op.constant(np.array(0, x.dtype.numpy)))
        x = op.Transpose(chunks.split(x, (groups, each, width)), perm=[0, 3, 4, 1, 2, 5])
        b, c = (op.Transpose(chunks.split(y, (groups, 1, size)), perm=[0, 3, 4, 1, 2, 5]) for y in (b, c))
        decay = op.Transpose(chunks.split(decay, (groups, each)), perm=[0, 3, 4, 1, 2])
        sums, kept = chunks.segment_sums(decay, chunks.length, 4)
        y = op.MatMul(op.Mul(op.MatMul(c, _turned(op, b)), kept), x)
        last = op.Sub(chunks.length, chunks.number(1))
        to_end = op.Unsqueeze(op.Exp(op.Gather(sums, last, axis=4)), chunks.one(5))
        made = op.MatMul(_turned(op, op.Mul(x, to_end)), b)
        since = op.CumSum(decay, chunks.number(4))
        first = op.Expand(chunks.zero, op.shape((batch, groups, each, 1, width, size)))
        if state is not None:
            first = op.Reshape(state, op.shape((batch, groups, each, 1, width, size)))
        states = op.Reshape(op.Concat(first, made, axis=3), op.constant(np.array([0, 0, 0, 0, -1], np.int64)))
        whole = op.Pad(op.Gather(since, last, axis=4), op.constant(np.array([0, 0, 0, 1, 0, 0, 0, 0], np.int64)))
        _, kept = chunks.segment_sums(whole, op.Add(chunks.count, chunks.number(1)), 3)
        back = op.Concat(op.constant(np.array([0, 0, 0, 0], np.int64)), op.shape((width, size)), axis=0)
        states = op.Reshape(op.MatMul(kept, states), back)
        before = op.Slice(states, chunks.one(0), chunks.one(chunks.count), chunks.one(3))
        carried = op.Mul(op.MatMul(c, _turned(op, before)), op.Unsqueeze(op.Exp(since), chunks.one(5)))
        y = op.Transpose(op.Add(y, carried), perm=[0, 3, 4, 1, 2, 5])
        end = op.Reshape(op.Gather(states, chunks.count, axis=3), op.shape((batch, heads, width, size)))
        return chunks.join(y, (heads, width)), end

    @staticmethod
    def sums(decay: Value) -> Value:
        """[B,H,S,S] of decay [B,H,S]: at (t, s) the sum of those after s and up to t; 0 for s >= t."""
        batch, heads, steps = decay.shape
        step = iota(start=0, length=steps)
        after = less(step, reshape(step, shape=(steps, 1)))
        each = reshape(decay, shape=(batch, heads, steps, 1))
        return cumsum(where(after, each, constant(value=0.0, dtype=decay.dtype)), axis=2)

    def flops(self, x: Value, decay: Value, b: Value, c: Value, state: Value | None = None) -> DimLike:
        """Of the recurrence: each step scales the state, adds to it and reads it."""
        return 5 * x.type.elements * b.shape[3]


def _segment_sums(torch: Any, decay: Any, steps: Any) -> Any:
    """[..., S, S] of decay [..., S]: at (t, s) the sum of those after s and up to t; 0 for s >= t."""
    after = torch.ones((steps, steps), dtype=torch.bool, device=decay.device).tril(-1)
    return torch.cumsum(torch.where(after, decay.unsqueeze(-1), 0.0), -2)


def _turned(op: Any, x: Any) -> Any:
    """x with its last two of six axes exchanged, in ONNX."""
    return op.Transpose(x, perm=[0, 1, 2, 3, 5, 4])


class _Chunks:
    """The steps of [B,S,...] in chunks of equal length, in ONNX, where S is known only when the model runs."""

    def __init__(self, op: Any, batch: DimLike, steps: DimLike, zero: Any) -> None:
        self.op, self.batch, self.steps, self.zero = op, batch, op.dim(steps), zero
        one = self.number(1)
        self.length = op.Max(op.Min(self.steps, self.number(CHUNK)), one)
        self.count = op.Div(op.Add(self.steps, op.Sub(self.length, one)), self.length)
        self.all = op.Mul(self.count, self.length)

    def number(self, n: int) -> Any:
        return self.op.constant(np.array(n, np.int64))

    def one(self, n: Any) -> Any:
        """A number as a vector."""
        if isinstance(n, int):
            return self.op.constant(np.array([n], np.int64))
        return self.op.Unsqueeze(n, self.op.constant(np.array([0], np.int64)))

    def split(self, x: Any, rest: tuple[DimLike, ...]) -> Any:
        """x [B,S,...] as [B,chunks,steps,*rest], with zeros behind the last step."""
        op, rank = self.op, len(x.shape)
        begin, end = op.constant(np.zeros(rank + 1, np.int64)), op.constant(np.zeros(rank - 2, np.int64))
        padded = op.Pad(x, op.Concat(begin, self.one(op.Sub(self.all, self.steps)), end, axis=0))
        shape = op.Concat(op.shape((self.batch,)), self.one(self.count), self.one(self.length), op.shape(rest), axis=0)
        return op.Reshape(padded, shape)

    def join(self, x: Any, rest: tuple[DimLike, ...]) -> Any:
        """The reverse: the first S steps of [B,chunks,steps,...] as [B,S,*rest]."""
        op = self.op
        shape = op.Concat(op.shape((self.batch,)), self.one(self.all), op.shape(rest), axis=0)
        return op.Slice(op.Reshape(x, shape), self.one(0), self.one(self.steps), self.one(1))

    def segment_sums(self, decay: Any, length: Any, axis: int) -> tuple[Any, Any]:
        """[...,n,n] of decay [...,n], n = length: at (t, s) the sum of those after s and up to t; then what is kept.

        That is its exponential, 0 for s > t. axis: that of t.
        """
        op = self.op
        column = op.Range(self.number(0), length, self.number(1))
        row, each = op.Unsqueeze(column, self.one(1)), op.Unsqueeze(decay, self.one(axis + 1))
        sums = op.CumSum(op.Where(op.Less(column, row), each, self.zero), self.number(axis))
        return sums, op.Where(op.Less(row, column), self.zero, op.Exp(sums))


causal_conv, state_space = op(CausalConv), op(StateSpace)
