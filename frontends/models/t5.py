"""T5: encoder-decoder whose scores get a learned number for each head and distance. (Raffel et al. 2020)"""

from __future__ import annotations

from typing import Any

from ...ir.errors import ConfigError
from ...ir.ops import constant, gather, iota, maximum, minimum, reshape, transpose
from ...ir.ops.tables import relative_buckets
from ...ir.types import i64
from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..harmless import OTHER_HEAD, keys
from ..layers import attention, drop, feed_forward, gated_feed_forward

GATED = "gated-"
_FARTHEST = 1 << 20
"""Distances that are in the graph one by one, as a limit."""


class T5(Config):
    vocab: int = key("vocab_size")
    dim: int = key("d_model", 512)
    width: int = key("d_kv", 64)
    ffn: int = key("d_ff", 2048)
    layers: int = key("num_layers", 6)
    decoder_layers: int | None = key("num_decoder_layers", None)
    heads: int = key("num_heads", 8)
    buckets: int = key("relative_attention_num_buckets", 32)
    farthest: int = key("relative_attention_max_distance", 128)
    dropout: float = key("dropout_rate", 0.1)
    eps: float = key("layer_norm_epsilon", 1e-6)
    feed_forward: str = key("feed_forward_proj", "relu")
    said_activation: str | None = key("dense_act_fn", None)
    said_gated: bool | None = key("is_gated_act", None)
    tie: bool | None = key("tie_word_embeddings", None)
    scale: bool | None = key("scale_decoder_outputs", None)
    own_head: bool = key("own_lm_head", False)

    noted = keys(OTHER_HEAD, "classifier_dropout")

    def __post_init__(self) -> None:
        if self.buckets < 4 or self.buckets % 4 or self.farthest <= self.buckets // 2:
            what = f"{self.buckets} relative_attention_num_buckets do not divide distances up to {self.farthest}"
            raise ConfigError(what, hint="expected a multiple of 4, and a distance beyond the half of them")
        if self.farthest > _FARTHEST:
            raise ConfigError(f"relative_attention_max_distance is {self.farthest}, expected at most {_FARTHEST}")

    @property
    def activation(self) -> str:
        """By its name in transformers, which calls GELU another one in a gated block; what stands beside wins."""
        if self.said_activation is not None:
            return self.said_activation
        return "gelu_new" if self.feed_forward == "gated-gelu" else self.feed_forward.removeprefix(GATED)

    @property
    def gated(self) -> bool:
        return self.feed_forward.startswith(GATED) if self.said_gated is None else self.said_gated

    @property
    def scaled(self) -> bool:
        """Whether the head sees states times dim**-0.5: as first published, where one table is embedding and head."""
        return self.tie is not False if self.scale is None else self.scale


def distance_bias(m: Scope, c: T5, queries: Value, keys: Value, *, both_ways: bool) -> Value:
    """What each head adds to its scores, [H,S,T], for queries in columns [S] and keys in columns [T]."""
    low, high = -c.farthest, c.farthest if both_ways else 0
    table = (m / "relative_attention_bias").param("weight", c.buckets, c.heads)
    buckets = relative_buckets(buckets=c.buckets, farthest=c.farthest, low=low, high=high)
    by_distance = gather(table, constant(value=buckets, dtype=i64), axis=0)
    away = reshape(keys, shape=(1, keys.shape[0])) - reshape(queries, shape=(queries.shape[0], 1))
    within = minimum(maximum(away, constant(value=low, dtype=i64)), constant(value=high, dtype=i64))
    return gather(transpose(by_distance, permutation=(1, 0)), within - low, axis=1)


def stack(
    m: Scope, c: T5, x: Value, mask: Value, layers: int, memory: Value | None = None, memory_mask: Value | None = None
) -> Value:
    """An encoder over x [B,S,C], or over `memory` a decoder. The biases are those of its first layer."""
    columns = iota(start=0, length=x.shape[1])
    first = m / "block.0.layer.0.SelfAttention"
    bias = distance_bias(first, c, columns, columns, both_ways=memory is None)
    x = drop(x, c.dropout)
    common: dict[str, Any] = {"heads": c.heads, "width": c.width, "scale": 1.0, "names": ("q", "k", "v", "o")}
    for b in m.layers("block", layers):
        y = (b / "layer.0").rms_norm("layer_norm", x, c.eps)
        y = attention(b / "layer.0.SelfAttention", y, mask=mask, bias=bias, causal=memory is not None, **common)
        x = x + drop(y, c.dropout)
        if memory is not None:
            y = (b / "layer.1").rms_norm("layer_norm", x, c.eps)
            y = attention(b / "layer.1.EncDecAttention", y, memory=memory, mask=memory_mask, **common)
            x = x + drop(y, c.dropout)
        last = b / ("layer.1" if memory is None else "layer.2")
        x = x + drop(feed(last / "DenseReluDense", c, last.rms_norm("layer_norm", x, c.eps)), c.dropout)
    return drop(m.rms_norm("final_layer_norm", x, c.eps), c.dropout)


def feed(m: Scope, c: T5, x: Value) -> Value:
    if c.gated:
        return gated_feed_forward(m, x, c.ffn, c.activation, names=("wi_0", "wi_1", "wo"))
    return feed_forward(m, x, c.ffn, c.activation, names=("wi", "wo"), dropout=c.dropout)


@model(
    task="seq2seq-lm",
    checkpoint=Checkpoint(
        architecture="T5ForConditionalGeneration",
        # Old checkpoints store the table three times, and the table of a cross-attention that never had one.
        copies=dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"),
        unused={"*EncDecAttention.relative_attention_bias.weight": "only self-attention has one"},
        from_weights={"own_lm_head": "lm_head.weight"},
    ),
)
def t5(
    m: Scope,
    c: T5,
    input_ids: Value,
    attention_mask: Value,
    decoder_input_ids: Value,
    decoder_attention_mask: Value,
) -> Value:
    source, target = key_mask(attention_mask), key_mask(decoder_attention_mask)
    x = stack(m / "encoder", c, m.embed("shared", input_ids, c.vocab, c.dim), source, c.layers)
    y = m.embed("shared", decoder_input_ids, c.vocab, c.dim)
    layers = c.layers if c.decoder_layers is None else c.decoder_layers
    y = stack(m / "decoder", c, y, target, layers, memory=x, memory_mask=source)
    if c.scaled:
        y = y * c.dim**-0.5
    return m.linear("lm_head", y, c.vocab, tie=None if c.own_head else "shared")
