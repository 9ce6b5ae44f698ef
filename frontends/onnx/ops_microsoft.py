"""Operators of ONNX Runtime's own domain, as composites where they mean them."""

from __future__ import annotations

from ...ir import ops
from ...ir.graph import Node, Value
from ...ir.ops.elementwise import Cast
from ...ir.ops.foreign import Foreign
from ...ir.ops.shape import Concat, Expand, Iota, Reshape
from ...ir.types import DimLike, DType, i64
from .errors import Unmapped
from .ops_attention import below, merged, split_heads, turned, turned_by
from .ops_reduce import layer_norm, matmul, rms_norm
from .ops_shape import dimension
from .use import Handler, Handlers, Use

Parts = list["Value | None"]


def _skip_norm(*, centred: bool) -> Handler:
    """x + skip (+ bias), then a norm; the sum is the fourth output."""

    def handler(use: Use) -> Parts:
        if use.outputs(1, 2):
            raise Unmapped("its mean or its deviation is read")
        x, skip, w = use[0], use[1], use[2]
        b, bias = (use.get(3), use.get(4)) if centred else (None, use.get(3))
        total = x + skip
        total = total if bias is None else total + bias
        eps = use.attribute("epsilon", 1e-12 if centred else 1e-5)
        if total.dtype != w.dtype:
            raise Unmapped(f"x is {x.dtype} and its weight {w.dtype}")
        y = ops.layer_norm(total, w, b, eps=eps) if centred else ops.rms_norm(total, w, eps=eps)
        return [y, None, None, total]

    return handler


def _embed(use: Use) -> Parts:
    """Word, position and segment embeddings, added and normed."""
    ids, segments, words, places, kinds = use[0], use.get(1), use[2], use[3], use.get(4)
    w, b, mask, positions = use[5], use[6], use.get(7), use.get(8)
    if positions is None:
        rows = ops.expand(ops.iota(start=0, length=ids.shape[1]), shape=ids.shape)
        at = ops.gather(places, rows, axis=0)
    else:
        at = ops.gather(places, positions, axis=0)
    total = ops.gather(words, ids, axis=0) + at
    if segments is not None and kinds is not None:
        total = total + ops.gather(kinds, segments, axis=0)
    y = ops.layer_norm(total, w, b, eps=use.attribute("epsilon", 1e-12))
    count: Value | None = None
    if use.outputs(1):
        if mask is None:
            count = ops.constant(value=0, dtype=DType.i32)
            count = ops.expand(count, shape=(ids.shape[0],))
        else:
            count = ops.sum(mask.cast(i64), axis=1, keepdims=False).cast(DType.i32)
    return [y, count, total]


def _bias_gelu(use: Use) -> Value:
    return ops.gelu(use[0] + use[1])


def _fast_gelu(use: Use) -> Value:
    b = use.get(1)
    return ops.gelu(use[0] if b is None else use[0] + b, tanh=True)


def _quick_gelu(use: Use) -> Value:
    x = use[0]
    return x * ops.sigmoid(x * use.attribute("alpha", 1.702))


def _fused_matmul(use: Use) -> Value:
    a, b = use[0], use[1]
    if use.attribute("transBatchA", 0) or use.attribute("transBatchB", 0):
        raise Unmapped("batch axes are transposed")

    def flipped(x: Value) -> Value:
        order = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
        return ops.transpose(x, permutation=order)

    a = flipped(a) if use.attribute("transA", 0) and a.rank > 1 else a
    b = flipped(b) if use.attribute("transB", 0) and b.rank > 1 else b
    y, alpha = matmul(a, b), use.attribute("alpha", 1.0)
    return y if alpha == 1.0 else y * alpha


def _rotary(use: Use) -> Value:
    """Tables [M,R/2] at positions [B,S], or at one offset and the places behind it."""
    x, positions, cosines, sines = use[0], use[1], use[2], use[3]
    if use.attribute("scale", 1.0) != 1.0 or use.attribute("is_packed_batching", 0):
        raise Unmapped("scaled or packed")
    if positions.rank == 1:
        batch, length = x.shape[0], x.shape[2 if x.rank == 4 else 1]
        rows = ops.iota(start=0, length=length) + positions
        positions = ops.expand(rows, shape=(batch, length))
    heads = use.attribute("num_heads", 0)
    return turned_by(x, cosines, sines, positions, heads, use)


def _penalty(keep: Value, filter_value: float, dtype: DType) -> Value:
    """0 where a key counts, and the number that ONNX Runtime adds where it does not."""
    return ops.where(keep, ops.constant(value=0.0, dtype=dtype), ops.constant(value=filter_value, dtype=dtype))


def _key_mask(mask: Value, keys: DimLike, filter_value: float, dtype: DType) -> Value:
    """The bias of a mask [B] (how many keys count), [B,T], [B,S,T] or [B,1,S,T]."""
    if mask.rank == 1:
        count = ops.reshape(mask.cast(i64), shape=(mask.shape[0], 1, 1, 1))
        return _penalty(ops.less(ops.iota(start=0, length=keys), count), filter_value, dtype)
    shape = {2: (0, None, None, 1), 3: (0, None, 1, 2), 4: (0, 1, 2, 3)}.get(mask.rank)
    if shape is None or mask.shape[-1] != keys:
        raise Unmapped(f"a mask of {mask.type} for {keys} keys")
    wide = ops.reshape(mask, shape=tuple(1 if i is None else mask.shape[i] for i in shape))
    return _penalty(ops.logical_not(ops.equal(wide, ops.constant(value=0, dtype=mask.dtype))), filter_value, dtype)


def _causal(q: Value, k: Value, past: DimLike, filter_value: float) -> Value:
    return _penalty(below(q.shape[1], k.shape[1], 0 if past == 0 else dimension(past)), filter_value, q.dtype)


def _added(parts: list[Value]) -> Value | None:
    total: Value | None = None
    for part in parts:
        total = part if total is None else total + part
    return total


def _multi_head(use: Use) -> Parts:
    """MultiHeadAttention with q [B,S,H*D], and k and v alike, or [B,H,T,D] as a cache has them."""
    if not use.has(1) or not use.has(2) or use.outputs(3):
        raise Unmapped("packed, or its scores are read")
    q, k, v, heads = use[0], use[1], use[2], use.attribute("num_heads")
    bias, mask, extra, past_k, past_v = use.get(3), use.get(4), use.get(5), use.get(6), use.get(7)
    if q.rank != 3 or k.rank not in (3, 4) or (k.rank == 4 and bias is not None) or len(use.node.input) > 8:
        raise Unmapped(f"q is {q.type} and k {k.type}")
    if bias is not None:
        width, start = (q.shape[2], k.shape[2], v.shape[2]), [0, q.shape[2], q.shape[2] + k.shape[2]]
        q, k, v = (
            x + ops.slice_(bias, axis=0, start=at, length=n) for x, at, n in zip((q, k, v), start, width, strict=True)
        )
    q = split_heads(q, heads)
    k, v = (split_heads(x, heads) if x.rank == 3 else turned(x) for x in (k, v))
    past: DimLike = 0
    presents: Parts = [None, None]
    if past_k is not None and past_v is not None:
        joined = [ops.cache_append(p, new) for p, new in ((past_k, k), (past_v, v))]
        past = past_k.shape[2]
        k, v = (ops.cache_read(x) for x in joined)
        presents = list(joined)
    elif use.outputs(1, 2):
        presents = [turned(k), turned(v)]
    filter_value = use.attribute("mask_filter_value", -10000.0)
    biases = [] if extra is None else [extra]
    if mask is not None:
        biases.append(_key_mask(mask, k.shape[1], filter_value, q.dtype))
    if use.attribute("unidirectional", 0):
        biases.append(_causal(q, k, past, q.dtype.lowest))
    scale = use.attribute("scale", 0.0) or None
    return [merged(ops.attention(q, k, v, _added(biases), scale=scale)), *presents]


def _packed(use: Use) -> Parts:
    """Attention with the three projections in one weight [C, 3*H*D]."""
    x, w, b, mask, past, extra = use[0], use[1], use.get(2), use.get(3), use.get(4), use.get(5)
    heads, sizes = use.attribute("num_heads"), use.attribute("qkv_hidden_sizes")
    if use.attribute("do_rotary", 0) or len(use.node.input) > 6 or use.attribute("past_present_share_buffer", 0):
        raise Unmapped("it turns, or shares a buffer")
    whole = w.shape[1]
    sizes = sizes or [whole // 3] * 3
    y = matmul(x, w) if b is None else matmul(x, w) + b
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    q, k, v = (
        split_heads(ops.slice_(y, axis=2, start=at, length=n), heads) for at, n in zip(starts, sizes, strict=True)
    )
    before: DimLike = 0
    present: Value | None = None
    if past is not None:
        halves = [ops.reshape(ops.slice_(past, axis=0, start=i, length=1), shape=past.shape[1:]) for i in (0, 1)]
        joined = [ops.cache_append(p, new) for p, new in zip(halves, (k, v), strict=True)]
        before = past.shape[3]
        k, v = (ops.cache_read(c) for c in joined)
        present = _stacked(joined)
    elif use.outputs(1):
        present = _stacked([turned(k), turned(v)])
    filter_value = use.attribute("mask_filter_value", -10000.0)
    biases = [] if extra is None else [extra]
    if mask is not None:
        biases.append(_key_mask(mask, k.shape[1], filter_value, q.dtype))
    if use.attribute("unidirectional", 0):
        biases.append(_causal(q, k, before, q.dtype.lowest))
    scale = use.attribute("scale", 0.0) or None
    return [merged(ops.attention(q, k, v, _added(biases), scale=scale)), present]


def _stacked(parts: list[Value]) -> Value:
    return ops.concat(*(ops.reshape(p, shape=(1, *p.shape)) for p in parts), axis=0)


def _grouped(use: Use) -> Parts:
    """GroupQueryAttention: each row has read as many keys as it says, its new ones come behind them."""
    q, k, v, past_k, past_v, ends, sinks = use[0], use.get(1), use.get(2), use.get(3), use.get(4), use[5], use.get(11)
    heads, groups = use.attribute("num_heads"), use.attribute("kv_num_heads")
    (total,) = use.dims(6)
    odd = ("smooth_softmax", "qk_output", "kv_cache_bit_width", "sliding_window_cache")
    quantized = any(use.attribute(f"{x}_quant_type", "NONE") != "NONE" for x in "kv")
    if (
        any(use.attribute(name, 0) for name in odd)
        or use.outputs(3)
        or quantized
        or any(map(use.has, (12, 13, 14, 15)))
    ):
        raise Unmapped("a form of it that keeps or gives more than keys and values")
    use.skip("rotary_interleaved", 7, 8, 9)
    if k is None or v is None:
        width = q.shape[2] // (heads + 2 * groups)
        starts, counts = (0, heads, heads + groups), (heads, groups, groups)
        q, k, v = (
            ops.slice_(q, axis=2, start=a * width, length=n * width) for a, n in zip(starts, counts, strict=True)
        )
    for past in (past_k, past_v):
        if past is not None:
            use.importer.sizes.number(past.shape[3], k.shape[2] // groups)
    batch, length = q.shape[0], q.shape[1]
    room: DimLike = past_k.shape[2] if past_k is not None else 0
    full = _uniform(ends) == room + length - 1  # Every row has read all there is room for.
    valid = ops.reshape(ends, shape=(batch, 1)).cast(i64) + 1
    before = ops.reshape(dimension(room), shape=(1, 1)) if full else ops.maximum(valid - dimension(length), 0)
    if use.attribute("do_rotary", 0):
        places = use.get(9)
        if places is None:
            places = ops.expand(ops.iota(start=0, length=length) + before, shape=(batch, length))
        cosines, sines = (_reached(t, places) for t in (use[7], use[8]))
        q, k = (
            turned_by(x, cosines, sines, places, n, use, "rotary_interleaved") for x, n in ((q, heads), (k, groups))
        )
    q, k, v = split_heads(q, heads), split_heads(k, groups), split_heads(v, groups)
    if past_k is not None and past_v is not None and total != room + length:
        raise Unmapped(f"{total} keys are not the {room} before and the {length} new ones: a shared buffer")
    window = use.attribute("local_window_size", -1)
    scale, softcap = use.attribute("scale", 0.0) or None, use.attribute("softcap", 0.0) or None
    if full:
        joined = [new if p is None else ops.cache_append(p, new) for p, new in ((past_k, k), (past_v, v))]
        keys, values = joined if past_k is None else [ops.cache_read(c) for c in joined]
        presents = [turned(keys), turned(values)] if past_k is None else joined
        window = window if window > 0 else None
        y = ops.attention(
            q, keys, values, use.get(10), None, None, sinks, causal=True, window=window, scale=scale, softcap=softcap
        )
        return [merged(y), *presents]
    keys, values = (_placed(p, new, before) for p, new in ((past_k, k), (past_v, v)))
    ahead = ops.reshape(before, shape=(batch, 1, 1, 1))
    keep = below(length, keys.shape[1], ahead)
    if window > 0:
        keep = ops.logical_and(keep, ops.logical_not(below(length, keys.shape[1], ahead - window)))
    y = ops.attention(q, keys, values, use.get(10), keep, None, sinks, scale=scale, softcap=softcap)
    return [merged(y), turned(keys), turned(values)]


def _uniform(v: Value) -> DimLike | None:
    """The one number that all elements of a value are, if that is known."""
    while v.producer is not None and isinstance(v.producer.op, (Reshape, Expand, Cast)):
        v = v.producer.value("x")
    if v.number is not None:
        return int(v.number)
    node = v.producer
    return node.attributes["start"] if node is not None and isinstance(node.op, Iota) and v.shape == (1,) else None


def _joins_rows(node: Node) -> bool:
    """Whether a node joins along the first axis; how many rows it adds may be open."""
    if isinstance(node.op, Foreign) and node.attributes["domain"] == "" and node.attributes["name"] == "Concat":
        return ("axis", 0) in [tuple(field) for field in node.attributes["fields"]]
    return isinstance(node.op, Concat) and node.attributes["axis"] % node.output.rank == 0


def _reached(table: Value, places: Value) -> Value:
    """A table without the rows joined to its end that no place reaches, if these count the rows before them."""
    node, at = table.producer, places.producer
    while at is not None and isinstance(at.op, Reshape):
        at = at.value("x").producer
    if node is None or not _joins_rows(node) or at is None:
        return table
    first = node.arguments[0]
    counts = isinstance(at.op, Iota) and at.attributes["start"] == 0 and at.output.shape == first.shape[:1]
    return first if counts else table


def _placed(past: Value | None, new: Value, before: Value) -> Value:
    """[B,T,K,D]: of each row the first `before` keys of the past, and the new ones behind them."""
    if past is None:
        return new
    old = turned(past)
    room, length = old.shape[1], new.shape[1]
    places = ops.iota(start=0, length=room + length) - before
    at = ops.minimum(ops.maximum(places, 0), dimension(length - 1))
    shape = (*places.shape, 1, 1)
    wide = (*places.shape, *new.shape[2:])
    later = ops.take_along_axis(new, ops.expand(ops.reshape(at, shape=shape), shape=wide), axis=1)
    early = ops.pad(old, widths=((0, 0), (0, length), (0, 0), (0, 0)))
    return ops.where(ops.reshape(ops.less(places, 0), shape=shape), early, later)


MICROSOFT: Handlers = {
    "SkipLayerNormalization": _skip_norm(centred=True),
    "SkipSimplifiedLayerNormalization": _skip_norm(centred=False),
    "SimplifiedLayerNormalization": rms_norm,
    "RMSNormalization": rms_norm,
    "LayerNormalization": layer_norm,
    "EmbedLayerNormalization": _embed,
    "Gelu": lambda use: ops.gelu(use[0]),
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "RotaryEmbedding": _rotary,
    "MultiHeadAttention": _multi_head,
    "Attention": _packed,
    "GroupQueryAttention": _grouped,
    "BiasAdd": lambda use: use[0] + use[1] + use[2],
}
"""By op type of the domain com.microsoft."""
