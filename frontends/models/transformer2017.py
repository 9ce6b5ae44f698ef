"""The first Transformer: post-norm encoder-decoder, sinusoidal positions, one embedding. (Vaswani et al. 2017)

Layers are named as in torch.nn.Transformer, with the packed q, k, v of its attention split into three.
"""

from __future__ import annotations

import math
from typing import Any

from ...ir import Init
from ...ir.errors import ConfigError
from ...ir.ops import embedding, sinusoidal_positions
from ..dsl import Config, Scope, Value, key, key_mask, model
from ..layers import attention, drop, feed_forward

NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")


class Transformer2017(Config):
    vocab: int = key("vocab_size")
    dim: int = key("d_model", 512)
    heads: int = key("num_heads", 8)
    ffn: int = key("d_ff", 2048)
    layers: int = key("num_layers", 6)
    decoder_layers: int = key("num_decoder_layers", 6)
    activation: str = key("feed_forward_proj", "relu")
    dropout: float = key("dropout_rate", 0.1)
    eps: float = key("layer_norm_epsilon", 1e-5)
    tied: bool = key("tie_word_embeddings", True)

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.dim % 2:
            raise ConfigError(f"d_model {self.dim} must be even and a multiple of num_heads {self.heads}")


@model(task="seq2seq-lm")
def transformer2017(
    m: Scope,
    c: Transformer2017,
    input_ids: Value,
    attention_mask: Value,
    position_ids: Value,
    decoder_input_ids: Value,
    decoder_attention_mask: Value,
    decoder_position_ids: Value,
) -> Value:
    source_mask, target_mask = key_mask(attention_mask), key_mask(decoder_attention_mask)

    def embed(ids: Value, positions: Value) -> Value:
        table = (m / "embedding").param("weight", c.vocab, c.dim, init=Init("normal", c.dim**-0.5))
        x = embedding(ids, table) * math.sqrt(c.dim)
        return drop(x + sinusoidal_positions(positions, dim=c.dim, dtype=m.dtype), c.dropout)

    def attend(m: Scope, x: Value, mask: Value, memory: Value | None = None, causal: bool = False) -> Value:
        settings: dict[str, Any] = {"mask": mask, "memory": memory, "causal": causal}
        return drop(attention(m, x, heads=c.heads, names=NAMES, biases=True, **settings), c.dropout)

    def feed(m: Scope, x: Value) -> Value:
        names = ("linear1", "linear2")
        return drop(feed_forward(m, x, c.ffn, c.activation, names=names, bias=True, dropout=c.dropout), c.dropout)

    x = embed(input_ids, position_ids)
    for b in m.layers("encoder.layers", c.layers):
        x = b.layer_norm("norm1", x + attend(b / "self_attn", x, source_mask), c.eps)
        x = b.layer_norm("norm2", x + feed(b, x), c.eps)
    y = embed(decoder_input_ids, decoder_position_ids)
    for b in m.layers("decoder.layers", c.decoder_layers):
        y = b.layer_norm("norm1", y + attend(b / "self_attn", y, target_mask, causal=True), c.eps)
        y = b.layer_norm("norm2", y + attend(b / "multihead_attn", y, source_mask, memory=x), c.eps)
        y = b.layer_norm("norm3", y + feed(b, y), c.eps)
    return m.linear("lm_head", y, c.vocab, tie="embedding" if c.tied else None)
