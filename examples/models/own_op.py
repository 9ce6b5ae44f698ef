"""An op from outside: the feed-forward's nonlinearity is a class in this file, and everything else knows what to do.

`body` alone would be enough: reference, gradient, decomposition and ONNX follow from it. `torch` and `onnx` say how a
backend says it in fewer steps, and `verify` holds them against the body.
"""

from __future__ import annotations

from typing import Any

import monograph as mg
from monograph import Value, ops
from monograph.frontends.layers import attention, rotary
from monograph.ir import Op, TensorType, op
from monograph.ir.errors import check


class SquaredRelu(Op):
    """max(x, 0) ** 2, at most `limit`. (So et al. 2021)"""

    elementwise = True  # So passes may move it past reshapes, and processes may share it.

    def infer(self, x: Value, *, limit: float = 1e4) -> TensorType:
        check(limit > 0, f"limit is {limit}, expected more than 0")
        return x.type

    def body(self, x: Value, *, limit: float) -> Value:
        positive = ops.relu(x)
        most = ops.constant(value=limit, dtype=x.dtype)
        return ops.minimum(positive * positive, most)

    def torch(self, torch: Any, x: Any, *, limit: float) -> Any:
        return torch.square(torch.relu(x)).clamp(max=limit)


squared_relu = op(SquaredRelu)


class Small(mg.Config):
    vocab: int = 512
    dim: int = 64
    heads: int = 4
    layers: int = 2
    limit: float = 100.0


@mg.model
def squared(m: mg.Scope, c: Small, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotate, mask = rotary(m, position_ids, c.dim // c.heads, theta=10000.0), mg.key_mask(attention_mask)
    x = m.embed("embed", input_ids, c.vocab, c.dim)
    for b in m.layers("layers", c.layers):
        x = x + attention(
            b / "attention", b.rms_norm("norm1", x, 1e-6), heads=c.heads, causal=True, mask=mask, rotate=rotate
        )
        y = squared_relu(b.linear("up", b.rms_norm("norm2", x, 1e-6), 4 * c.dim), limit=c.limit)
        x = x + b.linear("down", y, c.dim)
    return m.linear("head", m.rms_norm("norm", x, 1e-6), c.vocab, tie="embed")
