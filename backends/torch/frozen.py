"""Layers over encoded weights that keep no float weight for the backward pass. (Dettmers et al. 2023)"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ...ir import backward_reads as reads
from ...ir import ops
from ...ir.encodings import Encoding
from ...ir.graph import Attributes, Graph, Node, Value
from ...ir.op import Op
from ...ir.ops.linear import Embedding, Linear
from ...ir.ops.quant import Dequantize
from ...ir.shard_rules import needs_all
from ...ir.types import DType, TensorType, f32
from .tensors import autocast_dtype, torch_dtype
from .untyped import applied


class FrozenLinear(Op):
    """linear(x, dequantize(w), b)."""

    reads_encoded: ClassVar[bool] = True
    backward_reads = reads.nothing
    shard = needs_all

    def complete(self, x: Value, w: Value, b: Value | None = None, **attributes: Any) -> Attributes:
        return attributes | {"encoding": str(w.type.encoding)}

    def infer(
        self, x: Value, w: Value, b: Value | None = None, *, transposed: bool = False, encoding: str = ""
    ) -> TensorType:
        return TensorType(x.dtype, (*x.shape[:-1], w.shape[1 if transposed else 0]))

    def body(self, x: Value, w: Value, b: Value | None = None, *, transposed: bool, encoding: str) -> Value:
        return ops.linear(x, ops.dequantize(w), b, transposed=transposed)

    def torch(self, torch: Any, x: Any, w: Any, b: Any = None, *, transposed: bool, encoding: str) -> Any:
        y = x.tracer.create_proxy("call_function", frozen_linear, (x, w, encoding, transposed), {})
        return y if b is None else y + b


class FrozenEmbedding(Op):
    """embedding(ids, dequantize(w)): only the rows that are asked for are dequantized."""

    reads_encoded: ClassVar[bool] = True
    backward_reads = reads.nothing
    shard = needs_all

    def complete(self, ids: Value, w: Value, **attributes: Any) -> Attributes:
        return {"encoding": str(w.type.encoding), "dtype": w.dtype}

    def infer(self, ids: Value, w: Value, *, encoding: str = "", dtype: DType = f32) -> TensorType:
        return TensorType(w.dtype, (*ids.shape, *w.shape[1:]))

    def body(self, ids: Value, w: Value, *, encoding: str, dtype: DType) -> Value:
        return ops.embedding(ids, ops.dequantize(w))

    def torch(self, torch: Any, ids: Any, w: Any, *, encoding: str, dtype: Any) -> Any:
        return ids.tracer.create_proxy("call_function", frozen_embedding, (ids, w, encoding, dtype), {})


FROZEN, FROZEN_ROWS = FrozenLinear(), FrozenEmbedding()


def over_encodings(graph: Graph) -> int:
    """linear and embedding over encoded weights => ops that dequantize anew for the gradient. Gives how many."""
    changed = 0
    for node in list(graph):
        w = _encoded_operand(node) if isinstance(node.op, (Linear, Embedding)) else None
        if w is None or w.type.encoding is None:
            continue
        x, _, *rest = node.operands
        with graph.at(node):
            if isinstance(node.op, Linear):
                y = graph.add(FROZEN, (x, w, *rest), {"transposed": node.attributes["transposed"]})[0]
            elif w.type.encoding.axis == -1:
                y = graph.add(FROZEN_ROWS, (x, w), {})[0]
            else:
                continue
        graph.replace(node.output, y)
        graph.erase(node)
        changed += 1
    return changed


def _encoded_operand(node: Node) -> Value | None:
    producer = node.arguments[1].producer
    return producer.arguments[0] if producer is not None and isinstance(producer.op, Dequantize) else None


def dequantized(stored: torch.Tensor, encoding: Encoding, dtype: torch.dtype) -> torch.Tensor:
    """The numbers that stored lines u8 stand for, as `Dequantize` has them.

    With one scale a line the product is made in `dtype`; with blocks and their narrow scales in f32.
    """
    width = encoding.header + encoding.block * encoding.bits // 8
    blocks = stored.view(*stored.shape[:-1], -1, width) if encoding.block else stored.unsqueeze(-2)
    narrow = encoding.block or encoding.zero or encoding.zeros
    size, wide = encoding.scale.bits // 8, torch.float32 if narrow and dtype != torch.float64 else dtype
    scales = blocks[..., :size].contiguous().view(torch_dtype(encoding.scale)).to(wide)
    y = _integers(blocks[..., encoding.header :], encoding).to(wide)
    if encoding.zeros:
        zeros = blocks[..., encoding.header - 1 : encoding.header].contiguous()
        y = y - (zeros.view(torch.int8) if encoding.bits == 8 else zeros).to(wide)
    y = (y - encoding.zero if encoding.zero else y) * scales
    if encoding.minimum:
        y = y + blocks[..., size : 2 * size].contiguous().view(torch_dtype(encoding.scale)).to(wide)
    return y.flatten(-2).to(dtype).movedim(-1, encoding.axis)


def _integers(packed: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    """The codes [..., blocks, block] of packed bytes."""
    if encoding.bits == 8:
        return packed.contiguous().view(torch.int8)
    mask = (1 << encoding.bits) - 1
    return torch.cat([packed >> shift & mask for shift in range(0, 8, encoding.bits)], -1)


def frozen_linear(x: torch.Tensor, w: torch.Tensor, encoding: str, transposed: bool) -> torch.Tensor:
    """x @ w.T for stored lines w; under autocast in its dtype."""
    return applied(_OverEncoded, x.to(autocast_dtype(x) or x.dtype), w, encoding, transposed)


def frozen_embedding(ids: torch.Tensor, w: torch.Tensor, encoding: str, dtype: torch.dtype) -> torch.Tensor:
    """Rows of stored lines w."""
    return dequantized(torch.nn.functional.embedding(ids, w), Encoding.parse(encoding), dtype)


class _OverEncoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stored: torch.Tensor, encoding: str, transposed: bool) -> torch.Tensor:
        ctx.save_for_backward(stored)
        ctx.encoding, ctx.transposed = Encoding.parse(encoding), transposed
        w = dequantized(stored, ctx.encoding, x.dtype)
        return x @ (w if transposed else w.t())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,), (stored,) = grads, ctx.saved_tensors
        w = dequantized(stored, ctx.encoding, grad.dtype)
        return grad @ (w.t() if ctx.transposed else w), None, None, None
