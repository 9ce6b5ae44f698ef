"""Attention for PyTorch: the target op behind `scaled_dot_product_attention` and the rewrite that leads to it."""

from __future__ import annotations

from typing import Any

from ...ir import ops
from ...ir.backward_reads import Saved, Strides, dense, width_of
from ...ir.errors import check
from ...ir.graph import Node, Value
from ...ir.layout import Layout
from ...ir.op import Op
from ...ir.ops.attention import Attention
from ...ir.shard_rules import needs_all
from ...ir.types import TensorType, bool_, broadcast, never_negative
from ...passes.pattern import Rewrite


class ScaledDotProductAttention(Op):
    """torch.nn.functional.scaled_dot_product_attention: q [B,H,S,D], k [B,K,T,D], v [B,K,T,Dv] -> [B,H,S,Dv].

    mask: bool (True = may attend; every row must have a key) or additive in the dtype of q, broadcast to [B,H,S,T].
    causal: query i sees keys up to i, which needs S = T.
    """

    autocast = True
    shard = needs_all

    def infer(
        self, q: Value, k: Value, v: Value, mask: Value | None = None, *, causal: bool, scale: float
    ) -> TensorType:
        full = (*q.shape[:3], k.shape[2])
        check(not causal or (mask is None and q.shape[2] == k.shape[2]), f"causal needs S = T and no mask: {full}")
        if mask is not None:
            check(mask.dtype in (bool_, q.dtype), f"mask is {mask.dtype}, expected bool or {q.dtype}")
            check(broadcast(mask.shape, full) == full, f"mask is {mask.type}, which does not broadcast to {list(full)}")
        return TensorType(q.dtype, (*q.shape[:3], v.shape[3]))

    def body(self, q: Value, k: Value, v: Value, mask: Value | None = None, *, causal: bool, scale: float) -> Value:
        by_length = (_swap(x) for x in (q, k, v))
        keep, bias = (mask, None) if mask is not None and mask.dtype == bool_ else (None, mask)
        return _swap(ops.attention(*by_length, bias=bias, mask=keep, causal=causal, scale=scale))

    def torch(self, torch: Any, q: Any, k: Any, v: Any, mask: Any = None, *, causal: bool, scale: float) -> Any:
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return sdpa(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True)

    def strides(self, shape: tuple[int, ...]) -> Strides | None:
        """By length, then by heads, as the layers around attention lie."""
        batch, heads, length, width = shape
        return dense((batch, length, heads, width))[0], width, heads * width, 1

    def backward_reads(self, node: Node, layout: Layout) -> Saved:
        """q, k, v, the result and a sum for each row; a bool mask is first made additive. (Dao et al. 2022)"""
        q, k, v, mask = node.value("q"), node.value("k"), node.value("v"), node["mask"]
        internal = layout.rows(q) * width_of(q)
        if mask is not None and mask.dtype == bool_:
            return Saved((q, k, v, node.output), internal + layout.bytes(mask.type.with_dtype(q.dtype)))
        if mask is not None and mask in layout.learns:
            # The kernels give no gradient of the mask: scores and weights are then made one by one.
            scores = layout.size(q.type.elements * k.shape[2]) // layout.size(q.shape[3])
            return Saved((q, k, v, mask), 2 * scores * width_of(q))
        return Saved((*node.arguments, node.output), internal)


SDPA = ScaledDotProductAttention()


def _swap(x: Value) -> Value:
    return ops.transpose(x, permutation=(0, 2, 1, 3))


class AttentionToSDPA(Rewrite):
    """Attention without softcap and sinks => one SDPA call.

    A row with no key may not reach SDPA: its kernels disagree on it and some give NaN gradients. Such a row is
    allowed every key, and its result, and with it its gradient, is then replaced by zeros.
    """

    def before(
        self,
        q: Value,
        k: Value,
        v: Value,
        bias: Value | None = None,
        mask: Value | None = None,
        lengths: Value | None = None,
        *,
        causal: bool,
        window: int | None,
        scale: float,
    ) -> Value:
        return ops.attention(q, k, v, bias, mask, lengths, causal=causal, window=window, scale=scale)

    def after(
        self,
        q: Value,
        k: Value,
        v: Value,
        bias: Value | None = None,
        mask: Value | None = None,
        lengths: Value | None = None,
        *,
        causal: bool,
        window: int | None,
        scale: float,
    ) -> Value:
        batch, rows, keys = q.shape[0], q.shape[1], k.shape[1]
        alone = bias is None and mask is None and lengths is None
        is_causal = causal and alone and window is None and rows == keys
        keep = None if is_causal else Attention.keep(rows, keys, batch, mask, lengths, causal, window)
        some = None
        if keep is not None and not (mask is None and lengths is None and never_negative(keys - rows)):
            some = _rank4(ops.any(keep))
            keep = ops.logical_or(keep, ops.logical_not(ops.any(keep)))
        y = q.graph.add(SDPA, (*map(_swap, (q, k, v)), _mask(bias, keep)), {"causal": is_causal, "scale": scale})[0]
        if some is not None:
            y = ops.where(some, y, ops.constant(value=0.0, dtype=q.dtype))
        return _swap(y)


def _mask(bias: Value | None, keep: Value | None) -> Value | None:
    """The one mask operand of SDPA, of rank 4."""
    if bias is None:
        return None if keep is None else _rank4(keep)
    if keep is None:
        return _rank4(bias)
    return _rank4(ops.where(keep, bias, ops.constant(value=bias.dtype.lowest, dtype=bias.dtype)))


def _rank4(x: Value) -> Value:
    return x if x.rank == 4 else ops.reshape(x, shape=(*(1,) * (4 - x.rank), *x.shape))
