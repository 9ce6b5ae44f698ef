"""The first Transformer: post-norm encoder-decoder, sinusoidal positions, one embedding. (Vaswani et al. 2017)

Layers are named as in torch.nn.Transformer, with the packed q, k, v of its attention split into three.
"""

from __future__ import annotations

import math

from ...ir import Init
from ...ir.errors import ConfigError
from ...ir.ops import attention, dropout, embedding, sinusoidal_positions
from ...ir.ops.feed_forward import activate
from ..activations import activation
from ..dsl import Config, Scope, Value, key, key_mask, model


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

    def drop(x: Value) -> Value:
        return dropout(x, p=c.dropout) if c.dropout else x

    def embed(ids: Value, positions: Value) -> Value:
        table = (m / "embedding").param("weight", c.vocab, c.dim, init=Init("normal", c.dim**-0.5))
        x = embedding(ids, table) * math.sqrt(c.dim)
        return drop(x + sinusoidal_positions(positions, dim=c.dim, dtype=m.dtype))

    def attend(m: Scope, x: Value, memory: Value, mask: Value, causal: bool = False) -> Value:
        q = m.linear("q_proj", x, c.dim, bias=True).split_heads(c.heads)
        k = m.linear("k_proj", memory, c.dim, bias=True).split_heads(c.heads)
        v = m.linear("v_proj", memory, c.dim, bias=True).split_heads(c.heads)
        y = attention(q, k, v, mask=mask, causal=causal)
        return m.linear("out_proj", y.merge_heads(), c.dim, bias=True)

    def feed(m: Scope, x: Value) -> Value:
        y = drop(activate(m.linear("linear1", x, c.ffn, bias=True), activation(c.activation)))
        return m.linear("linear2", y, c.dim, bias=True)

    x = embed(input_ids, position_ids)
    for b in m.layers("encoder.layers", c.layers):
        x = b.layer_norm("norm1", x + drop(attend(b / "self_attn", x, x, source_mask)), c.eps)
        x = b.layer_norm("norm2", x + drop(feed(b, x)), c.eps)
    y = embed(decoder_input_ids, decoder_position_ids)
    for b in m.layers("decoder.layers", c.decoder_layers):
        y = b.layer_norm("norm1", y + drop(attend(b / "self_attn", y, y, target_mask, causal=True)), c.eps)
        y = b.layer_norm("norm2", y + drop(attend(b / "multihead_attn", y, x, source_mask)), c.eps)
        y = b.layer_norm("norm3", y + drop(feed(b, y)), c.eps)
    return m.linear("lm_head", y, c.vocab, tie="embedding" if c.tied else None)
