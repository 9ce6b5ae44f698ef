"""Recurrent layers (RNN, LSTM, GRU) over padded sequences, and the order that moves padding to the right.

The IR has no loops, so these are primitives: one node reads a sequence of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import check
from ..flow import Link, Links
from ..graph import Value
from ..op import Op, op, unmoved
from ..types import DimLike, TensorType, bool_, i32, i64
from .checks import floating, rank, same_dtype, typed
from .reduce import accumulator

Arrays = tuple[Any, ...]
_CLOSED = 1e4
"""A number whose sigmoid is exactly 1, and whose negative's is exactly 0, in every float type."""


class Recurrent(Op):
    """What the three have in common: x [B,S,C], weights in PyTorch's layout with the gates stacked along the rows.

    weight_ih [G*H,C], weight_hh [G*H,H], bias_ih and bias_hh [G*H] (both or none); initial states [B,H] (None:
    zeros); lengths i32 [B]: the first lengths[b] of the S >= 1 steps count. The others leave the state as it is, and
    y is 0 there. Outputs: y [B,S,H], then the last states [B,H].
    """

    sensitive = True
    heavy = True
    backward_reads = reads.everything
    shard = shard_rules.needs_all
    gates: ClassVar[int]
    channel_flops: ClassVar[int]
    """Floating-point operations per step and channel besides the two products, with biases."""

    states = {"h0": 1}
    state_names = {"h0": "h"}
    counts = frozenset({"lengths"})

    def links(self, x: Value, *operands: Value | None, **attributes: Any) -> Links:
        last = ((Link(0, 0, 0, output), Link(0, 1, None, output)) for output in self.states.values())
        return (Link(0, 0, 0), Link(0, 1, 1, upto=True), *(link for pair in last for link in pair))

    def results(
        self, x: Value, weights: Sequence[Value | None], lengths: Value | None, **states: Value | None
    ) -> tuple[TensorType, TensorType]:
        """Types of y and of a state, after checking every operand."""
        w_ih, w_hh, b_ih, b_hh = weights
        assert w_ih is not None and w_hh is not None
        floating(x=x)
        rank(3, x=x)
        rank(2, weight_ih=w_ih, weight_hh=w_hh)
        batch, steps, width = x.shape
        hidden = w_hh.shape[1]
        rows = self.gates * hidden
        of = f", {self.gates} gates of {hidden} rows"
        typed(TensorType(x.dtype, (rows, hidden)), of, weight_hh=w_hh)
        typed(TensorType(x.dtype, (rows, width)), f"{of}, for x of width {width}", weight_ih=w_ih)
        check((b_ih is None) == (b_hh is None), "bias_ih and bias_hh are given both or not at all")
        typed(TensorType(x.dtype, (rows,)), of, bias_ih=b_ih, bias_hh=b_hh)
        same_dtype(x.dtype, **states)
        state = TensorType(x.dtype, (batch, hidden))
        typed(state, ", one row per batch row", **states)
        typed(TensorType(i32, (batch,)), ", one number of steps per batch row", lengths=lengths)
        check(not isinstance(steps, int) or steps > 0, "x has 0 steps, expected at least 1")
        return TensorType(x.dtype, (batch, steps, hidden)), state

    def flops(self, x: Value, weight_ih: Value, weight_hh: Value, *_: Value | None, **attributes: Any) -> DimLike:
        return self.step_flops(x.shape[0] * x.shape[1], x.shape[2], weight_hh.shape[1])

    def step_flops(self, tokens: DimLike, width: DimLike, hidden: DimLike) -> DimLike:
        """Of all steps: both products and what is done to each channel."""
        return 2 * tokens * self.gates * hidden * (width + hidden) + self.channel_flops * tokens * hidden

    def scan(
        self, cell: Callable[..., Arrays], x: Any, weights: Sequence[Any], states: Sequence[Any], lengths: Any
    ) -> Arrays:
        """(y, *last states). cell(input part, recurrent part, *states) -> new states, the first of which is y."""
        dtype, (batch, steps, _) = x.dtype, x.shape
        wide: list[Any] = [None if a is None else accumulator(a) for a in (x, *weights)]
        x, w_ih, w_hh, b_ih, b_hh = wide
        now = [np.zeros((batch, w_hh.shape[1]), x.dtype) if s is None else accumulator(s) for s in states]
        inputs = np.matmul(x, w_ih.T) + (0 if b_ih is None else b_ih)
        y = np.zeros((batch, steps, w_hh.shape[1]), x.dtype)
        for t in range(steps):
            new = cell(inputs[:, t], np.matmul(now[0], w_hh.T) + (0 if b_hh is None else b_hh), *now)
            counts = np.ones((batch, 1), bool) if lengths is None else (t < lengths)[:, None]
            now = [np.where(counts, a, b) for a, b in zip(new, now, strict=True)]
            y[:, t] = np.where(counts, now[0], 0)
        return tuple(a.astype(dtype) for a in (y, *now))

    def call(
        self, torch: Any, function: Any, x: Any, weights: Sequence[Any], states: Sequence[Any], lengths: Any
    ) -> Arrays:
        """The same by PyTorch's kernels, which know no lengths.

        Padding is on the right, so y is right where it counts, and the last h is found in it. The last cell state
        (LSTM) is not in y: one more channel of x, 1 on padding, shuts the input gate and opens the forget gate.
        """
        given = [w for w in weights if w is not None]
        shape = (x.size(0), weights[1].size(1))
        first = [x.new_zeros(shape) if s is None else s for s in states]
        keep: Any = None
        if lengths is not None:
            keep = (torch.arange(x.size(1), device=x.device) < lengths.unsqueeze(1)).unsqueeze(2)
            if len(first) == 2:
                x = torch.cat([x, keep.logical_not().to(x.dtype)], -1)
                hold = [weights[0].new_full((shape[1], 1), v) for v in (-_CLOSED, _CLOSED, 0.0, 0.0)]
                given[0] = torch.cat([weights[0], torch.cat(hold, 0)], 1)
        start = [s.unsqueeze(0) for s in first]
        # cuDNN can go backward only through what ran as training; without dropout that changes no number.
        made = function(x, start if len(start) == 2 else start[0], given, len(given) == 4, 1, 0.0, True, False, True)
        y, last = made[0], [made[i + 1].squeeze(0) for i in range(len(first))]
        if lengths is None:
            return (y, *last)
        at = (lengths - 1).clamp(min=0).to(torch.int64).view(-1, 1, 1).expand(-1, 1, shape[1])
        last[0] = torch.where((lengths > 0).unsqueeze(1), torch.gather(y, 1, at).squeeze(1), first[0])
        return (torch.where(keep, y, 0.0), *last)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


class RNN(Recurrent):
    """h = act(w_ih x + b_ih + w_hh h + b_hh). (Elman 1990)

    x [B,S,C], weight_ih [H,C], weight_hh [H,H], bias_ih [H], bias_hh [H], h0 [B,H] (None: zeros);
    lengths i32 [B]: the first steps of each row that count. Outputs: y [B,S,H], then the last h [B,H].
    activation: tanh or relu, which act is.
    """

    gates, channel_flops = 1, 4
    choices = {"activation": ("tanh", "relu")}

    def infer(
        self,
        x: Value,
        weight_ih: Value,
        weight_hh: Value,
        bias_ih: Value | None = None,
        bias_hh: Value | None = None,
        h0: Value | None = None,
        lengths: Value | None = None,
        *,
        activation: str = "tanh",
    ) -> tuple[TensorType, TensorType]:
        check(activation in ("tanh", "relu"), f"activation is {activation!r}, expected tanh or relu")
        return self.results(x, (weight_ih, weight_hh, bias_ih, bias_hh), lengths, h0=h0)

    def numpy(self, x: Any, *operands: Any, activation: str) -> Arrays:
        def cell(given: Any, recurrent: Any, h: Any) -> Arrays:
            total = given + recurrent
            return (np.tanh(total) if activation == "tanh" else np.maximum(total, 0),)

        return self.scan(cell, x, operands[:4], operands[4:5], operands[5])

    def torch(self, torch: Any, x: Any, *operands: Any, activation: str) -> Arrays:
        function = torch.rnn_tanh if activation == "tanh" else torch.rnn_relu
        return self.call(torch, function, x, operands[:4], operands[4:5], operands[5])


class LSTM(Recurrent):
    """i, f, o = sigmoid(...), g = tanh(...), c = f c + i g, h = o tanh(c); rows in the order i, f, g, o.

    (Hochreiter & Schmidhuber 1997; the forget gate is that of Gers et al. 2000)
    x [B,S,C], weight_ih [4H,C], weight_hh [4H,H], bias_ih [4H], bias_hh [4H], h0 and c0 [B,H] (None: zeros);
    lengths i32 [B]: the first steps of each row that count. Outputs: y [B,S,H], then the last h [B,H] and c [B,H].
    """

    states = {"h0": 1, "c0": 2}
    state_names = {"h0": "h", "c0": "c"}
    gates, channel_flops = 4, 21

    def infer(
        self,
        x: Value,
        weight_ih: Value,
        weight_hh: Value,
        bias_ih: Value | None = None,
        bias_hh: Value | None = None,
        h0: Value | None = None,
        c0: Value | None = None,
        lengths: Value | None = None,
    ) -> tuple[TensorType, TensorType, TensorType]:
        check((h0 is None) == (c0 is None), "h0 and c0 are given both or not at all")
        y, state = self.results(x, (weight_ih, weight_hh, bias_ih, bias_hh), lengths, h0=h0, c0=c0)
        return y, state, state

    def numpy(self, x: Any, *operands: Any) -> Arrays:
        def cell(given: Any, recurrent: Any, h: Any, c: Any) -> Arrays:
            i, f, g, o = np.split(given + recurrent, 4, axis=-1)
            new = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            return _sigmoid(o) * np.tanh(new), new

        return self.scan(cell, x, operands[:4], operands[4:6], operands[6])

    def torch(self, torch: Any, x: Any, *operands: Any) -> Arrays:
        return self.call(torch, torch.lstm, x, operands[:4], operands[4:6], operands[6])


class GRU(Recurrent):
    """r, z = sigmoid(...), n = tanh(w_in x + b_in + r (w_hn h + b_hn)), h = (1 - z) n + z h; rows in the order r, z, n.

    (Cho et al. 2014, in the form of PyTorch and cuDNN: the reset gate is applied after the product.)
    x [B,S,C], weight_ih [3H,C], weight_hh [3H,H], bias_ih [3H], bias_hh [3H], h0 [B,H] (None: zeros);
    lengths i32 [B]: the first steps of each row that count. Outputs: y [B,S,H], then the last h [B,H].
    """

    gates, channel_flops = 3, 17

    def infer(
        self,
        x: Value,
        weight_ih: Value,
        weight_hh: Value,
        bias_ih: Value | None = None,
        bias_hh: Value | None = None,
        h0: Value | None = None,
        lengths: Value | None = None,
    ) -> tuple[TensorType, TensorType]:
        return self.results(x, (weight_ih, weight_hh, bias_ih, bias_hh), lengths, h0=h0)

    def numpy(self, x: Any, *operands: Any) -> Arrays:
        def cell(given: Any, recurrent: Any, h: Any) -> Arrays:
            (r, z, n), (hr, hz, hn) = np.split(given, 3, axis=-1), np.split(recurrent, 3, axis=-1)
            z = _sigmoid(z + hz)
            return ((1 - z) * np.tanh(n + _sigmoid(r + hr) * hn) + z * h,)

        return self.scan(cell, x, operands[:4], operands[4:5], operands[5])

    def torch(self, torch: Any, x: Any, *operands: Any) -> Arrays:
        return self.call(torch, torch.gru, x, operands[:4], operands[4:5], operands[5])


class Compact(Op):
    """How to move the kept positions of each row to its front: (order, place, lengths) of a bool mask [B,S].

    order i64 [B,S]: the kept positions in order, then the others. place i64 [B,S]: the new place of a kept position;
    for another, that of the last kept one before it, or 0. lengths i32 [B]: how many positions of each row are kept.
    It lets a recurrence that only knows lengths skip hidden positions anywhere in a row.
    """

    compacts = True

    def links(self, mask: Value) -> Links:
        kept = (Link(0, axis, axis, output) for output in (0, 1) for axis in (0, 1))
        return (*kept, Link(0, 0, 0, 2), Link(0, 1, None, 2))

    backward_reads = reads.nothing
    shard = shard_rules.needs_all
    flops = unmoved

    def infer(self, mask: Value) -> tuple[TensorType, TensorType, TensorType]:
        check(mask.dtype == bool_ and mask.rank == 2, f"mask is {mask.type}, expected bool [B,S]")
        index = TensorType(i64, mask.shape)
        return index, index, TensorType(i32, mask.shape[:1])

    def numpy(self, mask: Any) -> Arrays:
        place = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        return np.argsort(~mask, axis=1, kind="stable"), place, mask.sum(axis=1).astype(np.int32)

    def torch(self, torch: Any, mask: Any) -> Arrays:
        number = mask.to(torch.int64)
        order = torch.argsort(number, dim=1, descending=True, stable=True)
        return order, (torch.cumsum(number, 1) - 1).clamp(min=0), number.sum(1).to(torch.int32)

    def onnx(self, op: Any, mask: Any) -> Arrays:
        number = op.Cast(mask, to=op.element_type(i64))
        axis = op.constant(np.array(1, np.int64))
        zero, one = op.constant(np.array(0, np.int64)), op.constant(np.array(1, np.int64))
        place = op.Max(op.Sub(op.CumSum(number, axis), one), zero)
        steps = op.dim(mask.shape[1])
        # No two are equal: kept positions come first, and both kinds in the order they have.
        rating = op.Sub(op.Mul(number, steps), op.Range(zero, steps, one))
        _, order = op.TopK(rating, op.shape((mask.shape[1],)), axis=1, outputs=2)
        count = op.ReduceSum(number, op.constant(np.array([1], np.int64)), keepdims=0)
        return order, place, op.Cast(count, to=op.element_type(i32))


rnn, lstm, gru, compact = op(RNN), op(LSTM), op(GRU), op(Compact)
