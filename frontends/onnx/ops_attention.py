"""Attention and rotary embeddings, of the standard and of ONNX Runtime, as the composites of the IR."""

from __future__ import annotations

from functools import reduce

from ...ir import ops
from ...ir.graph import Value
from ...ir.ops.position import rotate
from ...ir.types import DimLike, bool_, exact_div, i64
from .errors import Unmapped
from .ops_shape import dimension
from .use import Handlers, Use


def split_heads(x: Value, heads: int) -> Value:
    """[B,S,H*D] -> [B,S,H,D]."""
    return ops.reshape(x, shape=(x.shape[0], x.shape[1], heads, x.shape[2] // heads))


def merged(x: Value) -> Value:
    """[B,S,H,D] -> [B,S,H*D]."""
    return ops.reshape(x, shape=(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]))


def turned(x: Value) -> Value:
    """[B,S,H,D] <-> [B,H,S,D]."""
    return ops.transpose(x, permutation=(0, 2, 1, 3))


def below(length: DimLike, size: DimLike, ahead: Value | int = 0) -> Value:
    """bool [length, size]: whether column j is at most row i + `ahead`, a number or [B,1,1,1]."""
    rows = ops.reshape(ops.iota(start=0, length=length), shape=(length, 1)) + ahead
    return ops.less_equal(ops.iota(start=0, length=size), rows)


def _attention(use: Use) -> list[Value | None]:
    """Attention-23 and -24: rows that may look at nothing give zeros, as those of the IR."""
    if use.outputs(3):
        raise Unmapped("its scores are read")
    use.attribute("qk_matmul_output_mode")
    q, k, v, mask = use[0], use[1], use[2], use.get(3)
    flat = q.rank == 3
    if flat:
        q, k, v = (split_heads(x, use.attribute(f"{kind}_num_heads")) for x, kind in ((q, "q"), (k, "kv"), (v, "kv")))
    else:
        use.skip("q_num_heads", "kv_num_heads")
        q, k, v = turned(q), turned(k), turned(v)
    past_k, past_v = use.get(4), use.get(5)
    presents: list[Value | None] = [None, None]
    if past_k is not None and past_v is not None:
        joined = [ops.cache_append(past, new) for past, new in ((past_k, k), (past_v, v))]
        k, v = (ops.cache_read(x) for x in joined)
        presents = list(joined)
    elif use.outputs(1, 2):
        presents = [turned(k), turned(v)]
    bias, masks = None, list[Value]()
    if mask is not None:
        if mask.shape[-1] != k.shape[1]:
            raise Unmapped(f"its mask {mask.type} is not as long as the {k.shape[1]} keys")
        bias = mask if mask.dtype != bool_ else None
        masks += [mask] if mask.dtype == bool_ else []
    causal = bool(use.attribute("is_causal", 0))
    lengths = use.get(6)
    if lengths is not None:
        count = ops.reshape(lengths, shape=(lengths.shape[0], 1, 1, 1))
        masks.append(ops.less(ops.iota(start=0, length=k.shape[1]), count))
        if causal:
            masks.append(below(q.shape[1], k.shape[1], count - dimension(q.shape[1])))
        causal = False
    elif causal and past_k is None and q.shape[1] != k.shape[1]:
        masks.append(below(q.shape[1], k.shape[1]))
        causal = False
    softcap = use.attribute("softcap", 0.0)
    y = ops.attention(
        q,
        k,
        v,
        bias,
        reduce(ops.logical_and, masks) if masks else None,
        causal=causal,
        scale=use.attribute("scale"),
        softcap=softcap or None,
    )
    return [merged(y) if flat else turned(y), *presents]


def _rotary(use: Use) -> Value:
    """RotaryEmbedding-23: tables by position, or angles of each token."""
    x, cosines, sines, positions = use[0], use[1], use[2], use.get(3)
    heads = use.attribute("num_heads", 0)
    return turned_by(x, cosines, sines, positions, heads, use)


def turned_by(
    x: Value, cosines: Value, sines: Value, positions: Value | None, heads: int, use: Use, kind: str = "interleaved"
) -> Value:
    """x [B,S,H*D] or [B,H,S,D] turned by tables [M,R/2] at positions [B,S], or by angles [B,S,R/2].

    kind: the attribute that says how pairs lie.
    """
    wide = x.rank == 4
    width: DimLike = use.attribute("rotary_embedding_dim", 0)
    if wide:
        y = turned(x)
    else:
        heads = heads or _heads(x, width or 2 * _int(cosines.shape[-1]))
        y = split_heads(x, heads)
    if positions is not None:
        cosines, sines = (ops.gather(t, positions, axis=0) for t in (cosines, sines))
    half = cosines.shape[-1]
    shape = (*cosines.shape[:2], 1, half)
    cosines, sines = (ops.reshape(t, shape=shape) for t in (cosines, sines))
    whole = 2 * half == y.shape[-1]
    z = rotate(y, cosines, sines, interleaved=bool(use.attribute(kind, 0)), rotary_dim=None if whole else 2 * half)
    return turned(z) if wide else merged(z)


def _int(d: DimLike) -> int:
    if not isinstance(d, int):
        raise Unmapped(f"a width of {d}")
    return d


def _heads(x: Value, width: DimLike) -> int:
    return _int(exact_div(x.shape[2], width))


def _tensor_scatter(use: Use) -> Value:
    """TensorScatter-24, linear: rows of an update put at the index of each batch row."""
    past, update, places = use[0], use[1], use.get(2)
    axis = use.axis(use.attribute("axis", -2), past.rank)
    if use.attribute("mode", "linear") != "linear" or axis == 0:
        raise Unmapped(f"mode {use.attribute('mode')} along axis {axis}")
    shape = tuple(d if i == axis else 1 for i, d in enumerate(update.shape))
    rows = ops.reshape(ops.iota(start=0, length=update.shape[axis]), shape=shape)
    if places is not None:
        rows = rows + ops.reshape(places.cast(i64), shape=(places.shape[0], *(1,) * (past.rank - 1)))
    return ops.scatter(past, ops.expand(rows, shape=update.shape), update, axis=axis)


def _swiglu(use: Use) -> Value:
    a, b, alpha = use[0], use[1], use.attribute("alpha", 1.0)
    return (ops.silu(a) if alpha == 1.0 else a * ops.sigmoid(a * alpha)) * b


ATTENTION: Handlers = {
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "TensorScatter": _tensor_scatter,
    "SwiGLU": _swiglu,
}
"""By op type of the standard domain."""
