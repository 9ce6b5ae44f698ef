"""BLOOM: pre-norm decoder whose scores are lowered by distance (ALiBi). (Scao et al. 2022)"""

from __future__ import annotations

from typing import Any

from ...ir.errors import ConfigError
from ..dsl import Checkpoint, Config, Scope, Value, key, key_mask, model
from ..layers import Packed, alibi, attention, drop, feed_forward


class Bloom(Config):
    vocab: int = key("vocab_size")
    dim: int = key("hidden_size", 64, also=("n_embed",))
    layers: int = key("n_layer", 2, also=("num_hidden_layers",))
    heads: int = key("n_head", 8, also=("num_attention_heads",))
    eps: float = key("layer_norm_epsilon", 1e-5)
    post_norm: bool = key("apply_residual_connection_post_layernorm", False)
    dropout: float = key("hidden_dropout", 0.0)
    tied: bool = key("tie_word_embeddings", True)
    exact: bool = key("slow_but_exact", False)
    ranks: int = key("pretraining_tp", 1)

    def __post_init__(self) -> None:
        if self.exact and self.ranks > 1:  # Then the reference adds up slices of products, without their biases.
            raise ConfigError(f"slow_but_exact with pretraining_tp {self.ranks} is not supported, only with 1")


@model(
    checkpoint=Checkpoint(
        "BloomForCausalLM", prefix="transformer", tied={"lm_head.weight": "transformer.word_embeddings.weight"}
    )
)
def bloom(m: Scope, c: Bloom, input_ids: Value, attention_mask: Value) -> Value:
    packed = Packed("query_key_value", by_head=True)
    settings: dict[str, Any] = {"heads": c.heads, "packed": packed, "names": ("", "", "", "dense")}
    mask, bias = key_mask(attention_mask), alibi(m, attention_mask, c.heads)
    t = m / "transformer"
    x = t.layer_norm("word_embeddings_layernorm", t.embed("word_embeddings", input_ids, c.vocab, c.dim), c.eps)
    for b in t.layers("h", c.layers):
        y = b.layer_norm("input_layernorm", x, c.eps)
        attended = attention(b / "self_attention", y, **settings, mask=mask, bias=bias, causal=True, biases=True)
        x = (y if c.post_norm else x) + drop(attended, c.dropout)
        y = b.layer_norm("post_attention_layernorm", x, c.eps)
        names = ("dense_h_to_4h", "dense_4h_to_h")
        fed = feed_forward(b / "mlp", y, 4 * c.dim, "gelu_new", names=names, bias=True)
        x = (y if c.post_norm else x) + drop(fed, c.dropout)
    x = t.layer_norm("ln_f", x, c.eps)
    return m.linear("lm_head", x, c.vocab, tie="transformer.word_embeddings" if c.tied else None)
