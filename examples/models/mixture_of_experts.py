"""A mixture of experts: each token goes through the two feed-forwards that a router finds best. (Shazeer et al. 2017)

The loss is the usual one, and a second term that keeps the router from sending all tokens to the same experts.
"""

from __future__ import annotations

import monograph as mg
from monograph import Value, ops
from monograph.frontends.experts import routed, router
from monograph.frontends.layers import attention, channels_of, rotary


class Mixture(mg.Config):
    vocab: int = 512
    dim: int = 64
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 128
    experts: int = 4
    chosen: int = 2
    layers: int = 2


def loss(found: dict[str, Value], labels: Value) -> Value:
    """Cross-entropy, and how far the share of each expert, over all tokens of a batch, is from an equal one."""
    shares, experts = found["shares"], channels_of(found["shares"])
    away = ops.mean(shares.reshape(-1, experts), axis=0, keepdims=False) - 1.0 / experts
    return ops.cross_entropy(found["logits"], labels) + 0.1 * ops.sum(away * away, keepdims=False)


@mg.model(loss=loss)
def mixture(m: mg.Scope, c: Mixture, input_ids: Value, attention_mask: Value, position_ids: Value) -> dict[str, Value]:
    rotate = rotary(m, position_ids, c.dim // c.heads, theta=10000.0)
    heads = {"heads": c.heads, "kv_heads": c.kv_heads, "causal": True}
    mask = mg.key_mask(attention_mask)

    def experts(m: mg.Scope, x: Value) -> tuple[Value, Value]:
        """(what the chosen experts make of each token, the share of every expert in it)."""
        scores = ops.softmax(router(m, "gate", x, c.experts))
        weights, indices = ops.topk(scores, k=c.chosen)
        weights = weights / ops.sum(weights, keepdims=True)
        y = routed(m / "experts", x, weights, indices, count=c.experts, width=c.ffn, activation="silu")
        return y, scores

    x, shares = m.embed("embed", input_ids, c.vocab, c.dim), []
    for b in m.layers("layers", c.layers):
        x = x + attention(b / "attention", b.rms_norm("norm1", x, 1e-6), **heads, mask=mask, rotate=rotate)
        y, share = experts(b / "moe", b.rms_norm("norm2", x, 1e-6))
        x, shares = x + y, [*shares, share]
    logits = m.linear("head", m.rms_norm("norm", x, 1e-6), c.vocab, tie="embed")
    return {"logits": logits, "shares": sum(shares[1:], shares[0]) * (1.0 / c.layers)}
