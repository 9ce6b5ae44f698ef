"""A decoder of GPT-J's blocks: attention beside feed-forward, a part of each head turned. (Wang & Komatsuzaki 2021)"""

from __future__ import annotations

import monograph as mg
from monograph import Value
from monograph.frontends.layers import attention, feed_forward, rotary


class Parallel(mg.Config):
    # Names in config.json may be anything: key() says which. So a checkpoint of GPT-J's kind could be read.
    vocab: int = mg.key("vocab_size", 512)
    dim: int = mg.key("n_embd", 64)
    heads: int = mg.key("n_head", 4)
    layers: int = mg.key("n_layer", 2)
    turned: int = mg.key("rotary_dim", 8)
    eps: float = mg.key("layer_norm_epsilon", 1e-5)


@mg.model
def parallel(m: mg.Scope, c: Parallel, input_ids: Value, attention_mask: Value, position_ids: Value) -> Value:
    rotate = rotary(m, position_ids, c.dim // c.heads, theta=10000.0, turned=c.turned, interleaved=True)
    mask = mg.key_mask(attention_mask)
    x = m.embed("wte", input_ids, c.vocab, c.dim)
    for b in m.layers("h", c.layers):
        y = b.layer_norm("ln", x, c.eps)  # One norm, read by both.
        attended = attention(b / "attn", y, heads=c.heads, causal=True, mask=mask, rotate=rotate)
        x = x + attended + feed_forward(b / "mlp", y, 4 * c.dim, "gelu_new", bias=True)
    return m.linear("lm_head", m.layer_norm("ln_f", x, c.eps), c.vocab, bias=True)
