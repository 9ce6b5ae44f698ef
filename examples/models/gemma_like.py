"""A decoder as Gemma 2: norms by 1 + w before and after each block, soft caps, and every other layer with a window."""

from __future__ import annotations

import monograph as mg
from monograph import Value, ops
from monograph.frontends.layers import attention, gated_feed_forward, rotary, unit_rms_norm


class Gemma(mg.Config):
    vocab: int = 512
    dim: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 128
    layers: int = 2
    window: int = 8
    softcap: float = 50.0
    final_softcap: float = 30.0
    eps: float = 1e-6


@mg.model
def gemma_like(m: mg.Scope, c: Gemma, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotate, mask = rotary(m, position_ids, c.head_dim, theta=10000.0), mg.key_mask(attention_mask)
    heads = {"heads": c.heads, "kv_heads": c.kv_heads, "width": c.head_dim, "causal": True, "softcap": c.softcap}
    # The embedding is scaled up, because the same table is the head, where it must be small.
    x = m.embed("embed", input_ids, c.vocab, c.dim) * c.dim**0.5
    for i, b in enumerate(m.layers("layers", c.layers)):
        y = unit_rms_norm(b, "before_attention", x, c.eps)
        # Even layers see the last `window` tokens only, and remember no more than these.
        y = attention(b / "attention", y, **heads, mask=mask, rotate=rotate, window=None if i % 2 else c.window)
        x = x + unit_rms_norm(b, "after_attention", y, c.eps)
        y = gated_feed_forward(b / "mlp", unit_rms_norm(b, "before_mlp", x, c.eps), c.ffn, "gelu_pytorch_tanh")
        x = x + unit_rms_norm(b, "after_mlp", y, c.eps)
    logits = m.linear("head", unit_rms_norm(m, "norm", x, c.eps), c.vocab, tie="embed")
    return ops.tanh(logits * (1.0 / c.final_softcap)) * c.final_softcap
