"""Target ops of the standard ONNX opset: made by rewrites.py, lowered here, and run by the reference through bodies."""

from __future__ import annotations

from typing import Any

from ...ir.errors import check
from ...ir.graph import Value
from ...ir.op import Op, op
from ...ir.ops.attention import attention, products
from ...ir.ops.cache import cache_append, cache_read
from ...ir.ops.position import rotate
from ...ir.ops.shape import reshape, transpose
from ...ir.types import DType, Shape, TensorType, bool_, broadcast, exact_div


def _bias_and_mask(mask: Value | None) -> tuple[Value | None, Value | None]:
    """A bool mask says which keys are kept, a float mask is added: one ONNX input, two of ours."""
    return (None, mask) if mask is None or mask.dtype == bool_ else (mask, None)


def _check_mask(full: Shape, dtype: DType, mask: Value | None) -> None:
    """full: the shape of all scores."""
    if mask is not None:
        check(mask.dtype in (bool_, dtype), f"mask is {mask.dtype}, expected bool or {dtype}")
        check(broadcast(mask.shape, full) == full, f"mask {mask.type} does not broadcast to {list(full)}")
        rows, keys = full[-2:]
        check(mask.shape[-2:] == (rows, keys), f"mask {mask.type} must have the [{rows},{keys}] of queries and keys")


def _turned(x: Value) -> Value:
    """[B,S,H,D] from [B,H,S,D], and back."""
    return transpose(x, permutation=(0, 2, 1, 3))


class OnnxAttention(Op):
    """Attention-23 without a cache: q [B,S,H,D], k [B,T,K,D], v [B,T,K,Dv] -> [B,S,H,Dv].

    heads_first: k and v are [B,K,T,D], as a cache has them. mask: bool or additive, with its last two axes [S,T].
    softcap: c * tanh(scores / c) before the mask.
    """

    def infer(
        self,
        q: Value,
        k: Value,
        v: Value,
        mask: Value | None = None,
        *,
        scale: float,
        softcap: float | None = None,
        heads_first: bool = False,
    ) -> TensorType:
        for name, x in (("q", q), ("k", k), ("v", v)):
            check(x.rank == 4 and x.dtype == q.dtype, f"{name} is {x.type}, expected rank 4 and the dtype of q")
        length, heads = (2, 1) if heads_first else (1, 2)
        check(k.shape[:3] == v.shape[:3] and k.shape[3] == q.shape[3], f"q is {q.type}, k {k.type} and v {v.type}")
        exact_div(q.shape[2], k.shape[heads])
        batch, rows, q_heads, _ = q.shape
        _check_mask((batch, q_heads, rows, k.shape[length]), q.dtype, mask)
        return TensorType(q.dtype, (*q.shape[:3], v.shape[3]))

    def body(
        self, q: Value, k: Value, v: Value, mask: Value | None, *, scale: float, softcap: float | None,
        heads_first: bool,
    ) -> Value:  # fmt: skip
        if heads_first:
            k, v = cache_read(k), cache_read(v)
        return attention(q, k, v, *_bias_and_mask(mask), scale=scale, softcap=softcap)

    def onnx(
        self, op: Any, q: Any, k: Any, v: Any, mask: Any = None, *, scale: float, softcap: float | None,
        heads_first: bool,
    ) -> Any:  # fmt: skip
        shape = (*q.shape[:3], v.shape[3])
        if heads_first:
            y = op.Attention(op.Transpose(q, perm=[0, 2, 1, 3]), k, v, mask, scale=scale, softcap=softcap)
            return op.Transpose(y, perm=[0, 2, 1, 3])
        heads = {"q_num_heads": q.shape[2], "kv_num_heads": k.shape[2]}
        flat = TensorType(q.dtype, (*shape[:2], shape[2] * shape[3]))
        given = [merged(op, x) for x in (q, k, v)]
        y = op.Attention(*given, mask, scale=scale, softcap=softcap, **heads, types=[flat])
        return op.reshape(y, shape)


class OnnxCachedAttention(Op):
    """Attention-23 that appends to a cache: (y, present keys, present values), with `scores` also scale * q k.

    q [B,S,H,D], new k [B,N,K,D] and v [B,N,K,Dv], pasts [B,K,P,D] and [B,K,P,Dv] -> y [B,S,H,Dv], [B,K,P+N,..] twice
    and scores [B,H,S,P+N]. heads_first: q and y are [B,H,S,..], k and v [B,K,N,..].
    """

    def infer(
        self,
        q: Value,
        k: Value,
        v: Value,
        past_k: Value,
        past_v: Value,
        mask: Value | None = None,
        *,
        scale: float,
        softcap: float | None = None,
        scores: bool = False,
        heads_first: bool = False,
    ) -> tuple[TensorType, ...]:
        check(k.shape[:3] == v.shape[:3] and k.shape[3] == q.shape[3], f"q is {q.type}, k {k.type} and v {v.type}")
        (rows, q_heads), (length, heads) = (x.shape[1:3][:: -1 if heads_first else 1] for x in (q, k))
        batch = k.shape[0]
        for x, new in ((past_k, k), (past_v, v)):
            right = x.rank == 4 and x.dtype == q.dtype and (*x.shape[:2], x.shape[3]) == (batch, heads, new.shape[3])
            check(right, f"past is {x.type} but new is {new.type}")
        exact_div(q_heads, heads)
        total = past_k.shape[2] + length
        check(past_v.shape[2] == past_k.shape[2], f"past keys are {past_k.type} but past values are {past_v.type}")
        full = (batch, q_heads, rows, total)
        _check_mask(full, q.dtype, mask)
        y = TensorType(q.dtype, (*q.shape[:3], v.shape[3]))
        present_k, present_v = (TensorType(q.dtype, (batch, heads, total, x.shape[3])) for x in (k, v))
        return y, present_k, present_v, *([TensorType(q.dtype, full)] if scores else [])

    def body(
        self, q: Value, k: Value, v: Value, past_k: Value, past_v: Value, mask: Value | None, *, scale: float,
        softcap: float | None, scores: bool, heads_first: bool,
    ) -> tuple[Value, ...]:  # fmt: skip
        if heads_first:
            q, k, v = map(_turned, (q, k, v))
        present_k, present_v = cache_append(past_k, k), cache_append(past_v, v)
        keys, values = cache_read(present_k), cache_read(present_v)
        y = attention(q, keys, values, *_bias_and_mask(mask), scale=scale, softcap=softcap)
        if heads_first:
            y = _turned(y)
        return y, present_k, present_v, *([products(q, keys, scale)] if scores else [])

    def onnx(
        self, op: Any, q: Any, k: Any, v: Any, past_k: Any, past_v: Any, mask: Any = None, *, scale: float,
        softcap: float | None, scores: bool, heads_first: bool,
    ) -> Any:  # fmt: skip
        shape = (*q.shape[:3], v.shape[3])
        outputs = 4 if scores else 3
        if heads_first:
            return op.Attention(q, k, v, mask, past_k, past_v, outputs=outputs, scale=scale, softcap=softcap)
        heads = {"q_num_heads": q.shape[2], "kv_num_heads": k.shape[2]}
        flat = TensorType(q.dtype, (*shape[:2], shape[2] * shape[3]))
        given = [merged(op, x) for x in (q, k, v)]
        y, *others = op.Attention(
            *given, mask, past_k, past_v, outputs=outputs, scale=scale, softcap=softcap, **heads, types=[flat]
        )
        return (op.reshape(y, shape), *others)


class OnnxRotary(Op):
    """RotaryEmbedding-23: x [B,S,H,D] turned by angles given as cosines and sines [B,S,R/2]; see `rope`."""

    def infer(
        self, x: Value, cosines: Value, sines: Value, *, interleaved: bool = False, rotary_dim: int | None = None
    ) -> TensorType:
        width = x.shape[3] if rotary_dim is None else rotary_dim
        expected = TensorType(x.dtype, (*x.shape[:2], exact_div(width, 2)))
        for name, v in (("cosines", cosines), ("sines", sines)):
            check(v.type == expected, f"{name} are {v.type}, expected {expected}")
        return x.type

    def body(self, x: Value, cosines: Value, sines: Value, *, interleaved: bool, rotary_dim: int | None) -> Value:
        c, s = (reshape(v, shape=(*v.shape[:2], 1, v.shape[2])) for v in (cosines, sines))
        return rotate(x, c, s, interleaved=interleaved, rotary_dim=rotary_dim)

    def onnx(self, op: Any, x: Any, cosines: Any, sines: Any, *, interleaved: bool, rotary_dim: int | None) -> Any:
        flat = merged(op, x)
        y = op.RotaryEmbedding(
            flat,
            cosines,
            sines,
            interleaved=int(interleaved),
            num_heads=x.shape[2],
            rotary_embedding_dim=rotary_dim,
            types=[flat.type],
        )
        return op.reshape(y, x.shape)


def merged(op: Any, x: Any) -> Any:
    """[B,S,H,D] -> [B,S,H*D], the layout in which ONNX needs no transposes."""
    batch, length, heads, width = x.shape
    return op.reshape(x, (batch, length, heads * width))


onnx_attention, onnx_cached_attention, onnx_rotary = op(OnnxAttention), op(OnnxCachedAttention), op(OnnxRotary)
