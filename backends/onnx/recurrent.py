"""Recurrent layers as ONNX's RNN, LSTM and GRU: gates in ONNX's order, time first, states kept over padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ...ir.backward_reads import everything
from ...ir.graph import Graph, Node, Value
from ...ir.op import Op
from ...ir.ops.checks import typed
from ...ir.ops.recurrent import GRU, LSTM, RNN, Arrays, Recurrent
from ...ir.ops.shape import concat, reshape, slice_
from ...ir.shard_rules import needs_all
from ...ir.types import DimLike, TensorType
from ...passes.pattern import Report


def gates_in_order(w: Value, order: Sequence[int]) -> Value:
    """The blocks of rows of `w` in another order."""
    rows = w.shape[0] // len(order)  # type: ignore[operator]
    if list(order) == sorted(order):
        return w
    return concat(*(slice_(w, axis=0, start=i * rows, length=rows) for i in order), axis=0)


class RecurrentToOnnx:
    """rnn, lstm, gru => the same with weights as ONNX stacks them.

    These are expressions over parameters, so they are stored evaluated and no node reorders them at run time.
    """

    name = "onnx_recurrent"

    def run(self, graph: Graph) -> Report:
        report = Report({self.name: 0})
        for node in graph:
            target = TARGETS.get(type(node.op))
            if target is not None:
                with graph.at(node):
                    self.rewrite(graph, node, target)
                report.counts[self.name] += 1
        return report

    def rewrite(self, graph: Graph, node: Node, target: OnnxRecurrent) -> None:
        order = target.order
        w_ih, w_hh = (gates_in_order(node.value(name), order) for name in ("weight_ih", "weight_hh"))
        b_ih, b_hh = (None if b is None else gates_in_order(b, order) for b in (node["bias_ih"], node["bias_hh"]))
        bias = None if b_ih is None or b_hh is None else concat(b_ih, b_hh, axis=0)
        packed = [None if w is None else reshape(w, shape=(1, *w.shape)) for w in (w_ih, w_hh, bias)]
        states = [node[name] for name in node.op.states]
        made = graph.add(target, (node["x"], *packed, *states, node["lengths"]), node.attributes)
        for old, new in zip(node.outputs, made, strict=True):
            graph.replace(old, new)
        graph.erase(node)


class OnnxRecurrent(Op):
    """A recurrent op of ONNX: x [B,S,C], weights [1,G*H,C] and [1,G*H,H], bias [1,2*G*H], states [B,H], lengths."""

    heavy = True
    backward_reads = everything
    shard = needs_all
    plain: ClassVar[Recurrent]
    order: ClassVar[tuple[int, ...]]
    """Where ONNX's gates are among PyTorch's."""

    def types(self, x: Value, w: Value, r: Value, b: Value | None, *states: Value | None) -> tuple[TensorType, ...]:
        """Types of y and of a state, after checking the weights."""
        hidden, gates = r.shape[2], self.plain.gates
        of = f", {gates} gates of {hidden} rows"
        typed(TensorType(x.dtype, (1, gates * hidden, x.shape[2])), of, w=w)
        typed(TensorType(x.dtype, (1, gates * hidden, hidden)), of, r=r)
        typed(TensorType(x.dtype, (1, 2 * gates * hidden)), of, b=b)
        state = TensorType(x.dtype, (x.shape[0], hidden))
        typed(state, ", one row per batch row", **{f"state{i}": s for i, s in enumerate(states)})
        return TensorType(x.dtype, (*x.shape[:2], hidden)), state

    def flops(self, x: Value, w: Value, r: Value, *_: Value | None, **attributes: Any) -> DimLike:
        tokens, hidden = x.shape[0] * x.shape[1], r.shape[2]
        return self.plain.step_flops(tokens, x.shape[2], hidden)

    def run(self, x: Any, w: Any, r: Any, b: Any, *rest: Any, **attributes: Any) -> Arrays:
        """The plain op on weights put back into PyTorch's order."""
        order = self.order
        halves = (None, None) if b is None else np.split(b[0], 2)

        def back(m: Any) -> Any:
            return (
                None if m is None else np.concatenate([np.split(m, len(order))[order.index(i)] for i in sorted(order)])
            )

        assert self.plain.numpy is not None
        made: Any = self.plain.numpy(x, *map(back, (w[0], r[0], *halves)), *rest, **attributes)
        return made

    def write(
        self, op: Any, x: Any, w: Any, r: Any, b: Any, states: Sequence[Any], lengths: Any, **options: Any
    ) -> Any:
        """The node between transposes. A row of length 0 keeps its state: runtimes would give zeros for it."""
        batch, steps, _ = x.shape
        hidden = r.shape[2]
        state, one = TensorType(x.dtype, (batch, hidden)), TensorType(x.dtype, (1, batch, hidden))
        first = [None if s is None else op.reshape(s, one.shape) for s in states]
        made = getattr(op, self.plain.name.upper())(
            op.Transpose(x, perm=[1, 0, 2]),
            w,
            r,
            b,
            lengths,
            *first,
            outputs=1 + len(states),
            hidden_size=hidden,
            types=[TensorType(x.dtype, (steps, 1, batch, hidden)), *[one] * len(states)],
            **options,
        )
        y = op.Transpose(op.reshape(made[0], (steps, batch, hidden)), perm=[1, 0, 2])
        last = [op.reshape(h, state.shape) for h in made[1:]]
        if lengths is not None and states[0] is not None:
            read = op.Greater(lengths, op.constant(np.array(0, np.int32)))
            read = op.Unsqueeze(read, op.constant(np.array([1], np.int64)))
            last = [op.Where(read, h, s) for h, s in zip(last, states, strict=True)]
        return (y, *last)


class OnnxRNN(OnnxRecurrent):
    """RNN-14 or later."""

    plain = RNN()
    order = (0,)

    def infer(
        self,
        x: Value,
        w: Value,
        r: Value,
        b: Value | None = None,
        h0: Value | None = None,
        lengths: Value | None = None,
        *,
        activation: str,
    ) -> tuple[TensorType, TensorType]:
        y, h = self.types(x, w, r, b, h0)
        return y, h

    def numpy(self, x: Any, w: Any, r: Any, b: Any, *rest: Any, activation: str) -> Arrays:
        return self.run(x, w, r, b, *rest, activation=activation)

    def onnx(self, op: Any, x: Any, w: Any, r: Any, b: Any, h0: Any, lengths: Any, *, activation: str) -> Any:
        return self.write(op, x, w, r, b, [h0], lengths, activations=[activation.capitalize()])


class OnnxLSTM(OnnxRecurrent):
    """LSTM-14 or later."""

    plain = LSTM()
    order = (0, 3, 1, 2)  # i o f c of i f g o.

    def infer(
        self,
        x: Value,
        w: Value,
        r: Value,
        b: Value | None = None,
        h0: Value | None = None,
        c0: Value | None = None,
        lengths: Value | None = None,
    ) -> tuple[TensorType, TensorType, TensorType]:
        y, state = self.types(x, w, r, b, h0, c0)
        return y, state, state

    def numpy(self, x: Any, w: Any, r: Any, b: Any, *rest: Any) -> Arrays:
        return self.run(x, w, r, b, *rest)

    def onnx(self, op: Any, x: Any, w: Any, r: Any, b: Any, h0: Any, c0: Any, lengths: Any) -> Any:
        return self.write(op, x, w, r, b, [h0, c0], lengths)


class OnnxGRU(OnnxRecurrent):
    """GRU-14 or later, with the reset gate after the product."""

    plain = GRU()
    order = (1, 0, 2)  # z r h of r z n.

    def infer(
        self,
        x: Value,
        w: Value,
        r: Value,
        b: Value | None = None,
        h0: Value | None = None,
        lengths: Value | None = None,
    ) -> tuple[TensorType, TensorType]:
        y, h = self.types(x, w, r, b, h0)
        return y, h

    def numpy(self, x: Any, w: Any, r: Any, b: Any, *rest: Any) -> Arrays:
        return self.run(x, w, r, b, *rest)

    def onnx(self, op: Any, x: Any, w: Any, r: Any, b: Any, h0: Any, lengths: Any) -> Any:
        return self.write(op, x, w, r, b, [h0], lengths, linear_before_reset=1)


TARGETS: dict[type[Op], OnnxRecurrent] = {RNN: OnnxRNN(), LSTM: OnnxLSTM(), GRU: OnnxGRU()}
