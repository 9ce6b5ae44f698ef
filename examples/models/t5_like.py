"""An encoder-decoder as T5: no positions, but a learned number for each head and distance. (Raffel et al. 2020)

Distances are explicit integers, so the same expression is right in training, with a cache, and under padding.
"""

from __future__ import annotations

import math

import monograph as mg
from monograph import Value, ops
from monograph.frontends.layers import attention, feed_forward


class Small(mg.Config):
    vocab: int = 512
    dim: int = 64
    heads: int = 4
    ffn: int = 128
    layers: int = 2
    buckets: int = 16
    farthest: int = 64


def bucket(distance: int, count: int, farthest: int) -> int:
    """The bucket of a distance >= 0: near ones have one each, far ones share by their logarithm."""
    near = count // 2
    if distance < near:
        return distance
    share = math.log(distance / near) / math.log(farthest / near)
    return min(near + int(share * (count - near)), count - 1)


def distances(m: mg.Scope, c: Small, length: Value, *, both_ways: bool) -> Value:
    """A bias [heads,S,S] by how far a key is from a query; later keys have buckets of their own."""
    far, half = c.farthest, c.buckets // 2 if both_ways else c.buckets
    later = half if both_ways else 0
    numbers = [bucket(abs(d), half, far) + (later if d > 0 else 0) for d in range(-far, far + 1)]
    table = m.param("bias", c.buckets, c.heads)
    by_distance = ops.gather(table, ops.constant(value=tuple(numbers), dtype=mg.DType.i64), axis=0)
    place = ops.iota(start=0, length=length.shape[1])
    away = place.reshape(1, length.shape[1]) - place.reshape(length.shape[1], 1)
    least, most = (ops.constant(value=n, dtype=mg.DType.i64) for n in (-far, far))
    return ops.gather(by_distance.transpose(1, 0), ops.minimum(ops.maximum(away, least), most) + far, axis=1)


@mg.model(task="seq2seq-lm")
def t5_like(
    m: mg.Scope,
    c: Small,
    input_ids: Value,
    attention_mask: Value,
    decoder_input_ids: Value,
    decoder_attention_mask: Value,
) -> Value:
    source, target = mg.key_mask(attention_mask), mg.key_mask(decoder_attention_mask)
    x = m.embed("embed", input_ids, c.vocab, c.dim)
    bias = distances(m / "encoder", c, input_ids, both_ways=True)
    for b in m.layers("encoder.layers", c.layers):
        y = b.rms_norm("norm1", x, 1e-6)
        x = x + attention(b / "attention", y, heads=c.heads, scale=1.0, mask=source, bias=bias)
        x = x + feed_forward(b, b.rms_norm("norm2", x, 1e-6), c.ffn, "relu")
    memory = m.rms_norm("encoder.norm", x, 1e-6)

    x = m.embed("embed", decoder_input_ids, c.vocab, c.dim)
    bias = distances(m / "decoder", c, decoder_input_ids, both_ways=False)
    for b in m.layers("decoder.layers", c.layers):
        y = b.rms_norm("norm1", x, 1e-6)
        x = x + attention(b / "attention", y, heads=c.heads, scale=1.0, mask=target, bias=bias, causal=True)
        y = b.rms_norm("norm2", x, 1e-6)
        x = x + attention(b / "cross", y, heads=c.heads, scale=1.0, memory=memory, mask=source)
        x = x + feed_forward(b, b.rms_norm("norm3", x, 1e-6), c.ffn, "relu")
    return m.linear("head", m.rms_norm("norm", x, 1e-6) * c.dim**-0.5, c.vocab, tie="embed")
