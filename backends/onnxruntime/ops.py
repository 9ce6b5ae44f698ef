"""Target ops of ONNX Runtime: made by this backend's rewrites, lowered here, run by the reference through bodies."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ...ir.errors import check
from ...ir.graph import Value
from ...ir.op import Op, op
from ...ir.ops.attention import attention
from ...ir.ops.cache import cache_read
from ...ir.ops.elementwise import cast, constant, cos, maximum, sin, sub
from ...ir.ops.feed_forward import Activation, silu
from ...ir.ops.linear import linear
from ...ir.ops.logic import less, less_equal, where
from ...ir.ops.norm import layer_norm, rms_norm
from ...ir.ops.position import rotate
from ...ir.ops.shape import concat, expand, gather, iota, reshape, slice_, take_along_axis, transpose
from ...ir.types import DimLike, DType, TensorType, bool_, f32, i8, i32, i64
from ...ir.value import type_of
from ...passes.narrow_cache import rounded, widened
from ..onnx.builder import MICROSOFT


class OrtGroupQueryAttention(Op):
    """Causal attention of S new tokens a row over a cache, which they join: (y, present keys, present values).

    q [B,S,H*D], k and v [B,S,K*D] (or all three side by side in q [B,S,(H+2K)*D]), pasts [B,K,P,D].
    lengths: i32 [B], valid tokens in each row once the new ones are in. Rows are compact: the new tokens of row b
    come right after its first max(lengths[b] - S, 0) cached ones, whatever P is, so a prompt (P = 0) is padded on
    the right and rows of different length decode together. total: i32, the largest length or S.
    cosines, sines: [positions, R/2], rotate q and k by the place of each token in its row. sinks: [H].
    Here the presents are the P + S entries of a growing cache; a session gives the kernel one buffer of a fixed
    capacity as past and as present, and the kernel writes the new entries in place. k_scale, v_scale: [K,D], where
    pasts and presents are codes i8 that they make numbers of.
    """

    def infer(
        self,
        q: Value,
        past_k: Value,
        past_v: Value,
        lengths: Value,
        total: Value,
        k: Value | None = None,
        v: Value | None = None,
        cosines: Value | None = None,
        sines: Value | None = None,
        sinks: Value | None = None,
        k_scale: Value | None = None,
        v_scale: Value | None = None,
        *,
        heads: int,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        interleaved: bool = False,
    ) -> tuple[TensorType, TensorType, TensorType]:
        check(q.rank == 3 and past_k.rank == 4, f"q is {q.type} and past_k {past_k.type}, expected rank 3 and 4")
        batch, groups, past, width = past_k.shape
        rows = q.shape[1]
        check(past_v.type == past_k.type, f"past_k is {past_k.type} but past_v is {past_v.type}")
        check((k is None) == (v is None), "k and v are given together, or packed into q")
        columns = (heads + 2 * groups) * width if k is None else heads * width
        check(q.shape == (batch, rows, columns), f"q is {q.type}, expected [{batch},{rows},{columns}]")
        for name, x in (("k", k), ("v", v)):
            expected = TensorType(q.dtype, (batch, rows, groups * width))
            check(x is None or x.type == expected, f"{name} is {type_of(x)}, expected {expected}")
        check(lengths.type == TensorType(i32, (batch,)), f"lengths is {lengths.type}, expected i32[{batch}]")
        check(total.type == TensorType(i32, ()), f"total is {total.type}, expected i32[]")
        narrow = i8 if k_scale is not None else q.dtype
        check(past_k.dtype == narrow, f"past_k is {past_k.type} with scales {type_of(k_scale)}")
        for name, x in (("k_scale", k_scale), ("v_scale", v_scale)):
            check(x is None or x.shape == (groups, width), f"{name} is {type_of(x)}, expected [{groups},{width}]")
        check((k_scale is None) == (v_scale is None), "keys and values are both codes, or both numbers")
        check((cosines is None) == (sines is None), "cosines and sines are given together")
        check(sinks is None or sinks.shape == (heads,), f"sinks is {type_of(sinks)}, expected [{heads}]")
        present = TensorType(past_k.dtype, (batch, groups, past + rows, width))
        return TensorType(q.dtype, (batch, rows, heads * width)), present, present

    def body(
        self,
        q: Value,
        past_k: Value,
        past_v: Value,
        lengths: Value,
        total: Value,
        k: Value | None = None,
        v: Value | None = None,
        cosines: Value | None = None,
        sines: Value | None = None,
        sinks: Value | None = None,
        k_scale: Value | None = None,
        v_scale: Value | None = None,
        *,
        heads: int,
        scale: float,
        window: int | None,
        softcap: float | None,
        interleaved: bool,
    ) -> tuple[Value, Value, Value]:
        batch, groups, past, width = past_k.shape
        rows = q.shape[1]
        if k is None or v is None:
            ends = (0, heads * width, (heads + groups) * width, (heads + 2 * groups) * width)
            q, k, v = (slice_(q, axis=-1, start=a, length=b - a) for a, b in itertools.pairwise(ends))
        q = reshape(q, shape=(batch, rows, heads, width))
        k, v = (reshape(x, shape=(batch, rows, groups, width)) for x in (k, v))
        start = reshape(_first_free(lengths, rows), shape=(batch, 1))
        query = start + iota(start=0, length=rows)
        if cosines is not None and sines is not None:
            turn = (gather(cosines, query, axis=-2), gather(sines, query, axis=-2))
            q, k = (_rotate(x, *turn, interleaved) for x in (q, k))
        if k_scale is not None and v_scale is not None:
            k, v = rounded(k, k_scale), rounded(v, v_scale)
        present_k, present_v = _join(past_k, k, start), _join(past_v, v, start)
        key = iota(start=0, length=past + rows)
        seen = less_equal(key, reshape(query, shape=(batch, 1, rows, 1)))
        if window is not None:
            seen = seen & less(reshape(query, shape=(batch, 1, rows, 1)), key + window)
        keep = seen & less(key, reshape(cast(lengths, dtype=i64), shape=(batch, 1, 1, 1)))
        keys, values = (transpose(x, permutation=(0, 2, 1, 3)) for x in (present_k, present_v))
        if k_scale is not None and v_scale is not None:
            keys, values = widened(keys, k_scale), widened(values, v_scale)
        y = attention(q, keys, values, None, keep, None, sinks, scale=scale, softcap=softcap)
        return reshape(y, shape=(batch, rows, heads * width)), present_k, present_v

    def onnx(
        self, op: Any, q: Any, past_k: Any, past_v: Any, lengths: Any, total: Any, k: Any = None, v: Any = None,
        cosines: Any = None, sines: Any = None, sinks: Any = None, k_scale: Any = None, v_scale: Any = None, *,
        heads: int, scale: float, window: int | None, softcap: float | None, interleaved: bool,
    ) -> Any:  # fmt: skip
        last = op.Sub(lengths, op.constant(np.array(1, np.int32)))
        # Input 9, position_ids, stays empty: the CPU kernel (1.31.1, 1.32.0) reads it only for batch 1 or S = 1 and
        # otherwise takes 0, 1, 2... without a word. Positions are what `lengths` says, and the session sees to it.
        given = (q, k, v, past_k, past_v, last, total, cosines, sines, None, None, sinks)
        narrow: dict[str, Any] = {}
        if k_scale is not None:
            shape = (1, past_k.shape[1], 1, past_k.shape[3])
            given = (*given, op.reshape(k_scale, shape), op.reshape(v_scale, shape))
            narrow = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        rotary = {"do_rotary": 1, "rotary_interleaved": int(interleaved)} if cosines is not None else {}
        return op.GroupQueryAttention(
            *given, outputs=3, domain=MICROSOFT, num_heads=heads, kv_num_heads=past_k.shape[1], scale=scale,
            local_window_size=window, softcap=softcap, **rotary, **narrow,
        )  # fmt: skip


def _first_free(lengths: Value, rows: DimLike) -> Value:
    """Place of the first new token in each row, i64 [B]: max(lengths - S, 0)."""
    before = sub(cast(lengths, dtype=i64), iota(start=rows, length=1))
    return maximum(before, constant(value=0, dtype=i64))


def _rotate(x: Value, cosines: Value, sines: Value, interleaved: bool) -> Value:
    """x [B,S,H,D] turned by angles [B,S,R/2], pairs as in `rope`."""
    half = cosines.shape[2]
    c, s = (reshape(t, shape=(*t.shape[:2], 1, half)) for t in (cosines, sines))
    return rotate(x, c, s, interleaved=interleaved, rotary_dim=2 * half)


def _join(past: Value, new: Value, start: Value) -> Value:
    """past [B,K,P,D] up to start [B,1], then new [B,S,K,D]; what follows the last new entry means nothing."""
    batch, groups, length, width = past.shape
    rows = new.shape[1]
    new = transpose(new, permutation=(0, 2, 1, 3))
    total = length + rows
    key = iota(start=0, length=total)
    at = maximum(key - start, constant(value=0, dtype=i64))
    last = iota(start=rows - 1, length=1)
    at = sub(last, maximum(last - at, constant(value=0, dtype=i64)))
    at = expand(reshape(at, shape=(batch, 1, total, 1)), shape=(batch, groups, total, width))
    old = less(key, start)
    return where(
        reshape(old, shape=(batch, 1, total, 1)), concat(past, new, axis=-2), take_along_axis(new, at, axis=-2)
    )


class OrtRotaryTable(Op):
    """Cosines (or sines) of position * frequency for positions 0 to length - 1, times `scale`: [length, R/2]."""

    def infer(
        self, *, frequencies: tuple[float, ...], length: int, scale: float, sine: bool, dtype: DType = f32
    ) -> TensorType:
        return TensorType(dtype, (length, len(frequencies)))

    def body(self, *, frequencies: tuple[float, ...], length: int, scale: float, sine: bool, dtype: DType) -> Value:
        wide = dtype if dtype.bits > 32 else f32
        angle = cast(reshape(iota(start=0, length=length), shape=(length, 1)), dtype=wide)
        angle = angle * constant(value=frequencies, dtype=wide)
        return cast((sin if sine else cos)(angle) * scale, dtype=dtype)

    def onnx(
        self, op: Any, *, frequencies: tuple[float, ...], length: int, scale: float, sine: bool, dtype: DType
    ) -> Any:
        wide = dtype.numpy if dtype.bits > 32 else np.dtype(np.float32)
        angle = np.arange(length, dtype=wide)[:, None] * np.asarray(frequencies, wide)
        table = (np.sin if sine else np.cos)(angle) * wide.type(scale)
        return op.constant(table.astype(dtype.numpy))


class OrtSkipRMSNorm(Op):
    """SkipSimplifiedLayerNormalization: (rms_norm(x + r, w), x + r)."""

    def infer(self, x: Value, r: Value, w: Value, *, eps: float) -> tuple[TensorType, TensorType]:
        check(x.type == r.type, f"x is {x.type} but r is {r.type}: the kernel does not broadcast")
        check(x.rank in (2, 3), f"x is {x.type}, expected rank 2 or 3")
        return x.type, x.type

    def body(self, x: Value, r: Value, w: Value, *, eps: float) -> tuple[Value, Value]:
        s = x + r
        return rms_norm(s, w, eps=eps), s

    def onnx(self, op: Any, x: Any, r: Any, w: Any, *, eps: float) -> Any:
        y, mean, deviation, total = op.SkipSimplifiedLayerNormalization(
            x, r, w, outputs=4, domain=MICROSOFT, epsilon=eps
        )
        mean.value.name = deviation.value.name = ""  # Optional outputs that nobody asked for.
        return y, total


class OrtSkipLayerNorm(Op):
    """SkipLayerNormalization: (layer_norm(x + r, w, b), x + r)."""

    def infer(
        self, x: Value, r: Value, w: Value, b: Value | None = None, *, eps: float
    ) -> tuple[TensorType, TensorType]:
        check(x.type == r.type, f"x is {x.type} but r is {r.type}: the kernel does not broadcast")
        check(x.rank in (2, 3), f"x is {x.type}, expected rank 2 or 3")
        return x.type, x.type

    def body(self, x: Value, r: Value, w: Value, b: Value | None = None, *, eps: float) -> tuple[Value, Value]:
        s = x + r
        return layer_norm(s, w, b, eps=eps), s

    def onnx(self, op: Any, x: Any, r: Any, w: Any, b: Any = None, *, eps: float) -> Any:
        y, mean, deviation, total = op.SkipLayerNormalization(x, r, w, b, outputs=4, domain=MICROSOFT, epsilon=eps)
        mean.value.name = deviation.value.name = ""  # Optional outputs that nobody asked for.
        return y, total


class OrtQuickGelu(Activation):
    """QuickGelu with alpha 1: x * sigmoid(x), in one pass over memory."""

    def body(self, x: Value) -> Value:
        return silu(x)

    def onnx(self, op: Any, x: Any) -> Any:
        return op.QuickGelu(x, domain=MICROSOFT, alpha=1.0)


class OrtTiedLinear(Op):
    """x @ w.T with w [out, in] as it is stored, because the embedding reads the same initializer: FusedMatMul."""

    def infer(self, x: Value, w: Value) -> TensorType:
        check(w.rank == 2 and x.shape[-1] == w.shape[1], f"x is {x.type} and w {w.type} (w is [out, in])")
        return TensorType(x.dtype, (*x.shape[:-1], w.shape[0]))

    def body(self, x: Value, w: Value) -> Value:
        return linear(x, w)

    def onnx(self, op: Any, x: Any, w: Any) -> Any:
        return op.FusedMatMul(x, w, domain=MICROSOFT, transB=1)


class OrtMultiHeadAttention(Op):
    """Attention without causality: q [B,S,H*D], k and v [B,T,H*D], keys: i32 [B,T], 1 = may be attended to.

    heads_first: k and v are [B,H,T,D], which the kernel need not move. A batch row whose keys are all hidden gives
    zeros.
    """

    def infer(
        self,
        q: Value,
        k: Value,
        v: Value,
        keys: Value | None = None,
        *,
        heads: int,
        scale: float,
        heads_first: bool = False,
    ) -> TensorType:
        rank = 4 if heads_first else 3
        for name, x, wanted in (("q", q, 3), ("k", k, rank), ("v", v, rank)):
            fits = x.rank == wanted and x.dtype == q.dtype
            check(fits, f"{name} is {x.type}, expected rank {wanted} and the dtype of q")
        fits = k.shape[:-1] == v.shape[:-1] and (not heads_first or k.shape[1] == heads)
        width = k.shape[-1] * heads if heads_first else k.shape[-1]
        check(fits and width == q.shape[2] and k.shape[0] == q.shape[0], f"q is {q.type}, k {k.type} and v {v.type}")
        expected = TensorType(i32, (k.shape[0], k.shape[-2]))
        check(keys is None or keys.type == expected, f"keys is {type_of(keys)}, expected {expected}")
        return TensorType(q.dtype, (*q.shape[:2], v.shape[-1] * heads if heads_first else v.shape[-1]))

    def body(
        self,
        q: Value,
        k: Value,
        v: Value,
        keys: Value | None = None,
        *,
        heads: int,
        scale: float,
        heads_first: bool = False,
    ) -> Value:
        keep = None
        if keys is not None:
            keep = reshape(cast(keys, dtype=bool_), shape=(keys.shape[0], 1, 1, keys.shape[1]))
        q, *others = (x if x.rank == 4 else reshape(x, shape=(x.shape[0], x.shape[1], heads, -1)) for x in (q, k, v))
        k, v = (cache_read(x) for x in others) if heads_first else others
        y = attention(q, k, v, None, keep, scale=scale)
        return reshape(y, shape=(y.shape[0], y.shape[1], -1))

    def onnx(
        self, op: Any, q: Any, k: Any, v: Any, keys: Any = None, *, heads: int, scale: float, heads_first: bool = False
    ) -> Any:
        # The kernel adds mask_filter_value: with the lowest number a hidden key weighs exactly nothing. Only a row
        # without any key comes out as an average of hidden values (1.31.1, 1.32.0), so it is multiplied by zero.
        y = op.MultiHeadAttention(
            q, k, v, None, keys, domain=MICROSOFT, num_heads=heads, scale=scale, mask_filter_value=q.dtype.lowest
        )
        if keys is None:
            return y
        axes = op.constant(np.array([1], np.int64))
        some = op.Cast(op.ReduceMax(keys, axes, keepdims=1), to=op.element_type(q.dtype))
        return op.Mul(y, op.Unsqueeze(some, op.constant(np.array([2], np.int64))))


group_query_attention, multi_head_attention = op(OrtGroupQueryAttention), op(OrtMultiHeadAttention)
rotary_table, skip_rms_norm, skip_layer_norm = op(OrtRotaryTable), op(OrtSkipRMSNorm), op(OrtSkipLayerNorm)
quick_gelu, tied_linear = op(OrtQuickGelu), op(OrtTiedLinear)
